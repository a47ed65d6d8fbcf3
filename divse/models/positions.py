"""Positions of inputs in their sequence or grid, added to the keys of a head's attention only."""

from __future__ import annotations

import math

import torch
from torch import Tensor

NEVER_ZERO = 1e-6  # published code: beside the length that coordinates are divided by


def sine_positions(length: int, dim: int, like: Tensor) -> Tensor:
    """Sine positions of a sequence -> (length, dim), on the device and in the type of `like`."""
    places = torch.arange(length, dtype=torch.float32, device=like.device)
    return waves(places, dim).to(like.dtype)


def spread_positions(length: int, dim: int, like: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Sine positions that run from 0 to 2 pi over each sequence: (length, dim) or (B, length, dim).

    The published code runs over the padded length instead, so that a caption's positions depend on
    its batch; given `lengths` (B,), each sequence here is its own measure.
    """
    places = torch.arange(1, length + 1, dtype=torch.float32, device=like.device)
    whole = torch.tensor(float(length), device=like.device)
    if lengths is not None:
        whole = lengths[:, None].to(like.device, torch.float32)
    return waves(places / (whole + NEVER_ZERO) * 2 * math.pi, dim).to(like.dtype)


def waves(places: Tensor, dim: int) -> Tensor:
    """Sines and cosines of places (..., N), interleaved, of falling rate -> (..., N, dim)."""
    rate = torch.arange((dim + 1) // 2, dtype=torch.float32, device=places.device)
    angle = places[..., None] * torch.exp(rate * (-math.log(10000.0) * 2 / dim))
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)[..., :dim]


def grid_positions(height: int, width: int, dim: int, like: Tensor, kind: str = "sine") -> Tensor:
    """Positions of a grid, row by row, half the channels per axis -> (height * width, dim)."""
    line = {"sine": sine_positions, "spread": spread_positions}[kind]
    rows = line(height, dim // 2, like)
    columns = line(width, dim - dim // 2, like)
    tall = rows[:, None].expand(height, width, -1)
    wide = columns[None, :].expand(height, width, -1)
    return torch.cat([tall, wide], dim=2).flatten(0, 1)


def positions(
    kind: str, shape: tuple[int, int] | tuple[()] | None, inputs: Tensor, lengths: Tensor | None
) -> Tensor | None:
    """Positions of inputs (B, N, C), or None.

    Args:
        kind: none, sine or spread.
        shape: (rows, columns) of a grid, () for a sequence, None where order means nothing.
        inputs: What the head reads.
        lengths: (B,), of sequences.

    """
    if kind == "none" or shape is None:
        return None
    count, dim = inputs.shape[1:]
    if shape:
        return grid_positions(*shape, dim, inputs, kind)
    if kind == "spread":
        return spread_positions(count, dim, inputs, lengths)
    return sine_positions(count, dim, inputs)
