"""What an encoder hands to a head, and the interface that every encoder follows.

An encoder works in two stages, so that a frozen one is run once and its output kept on disk:

1. `local(...)`: raw input -> local features (B, N, C) with lengths. Frozen encoders stop here.
2. `forward(local, mask)`: local features -> Features, with the global feature; never frozen.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Local(NamedTuple):
    """Local features: values (B, N, C) and how many of them are real, (B,) or None for all."""

    values: Tensor
    lengths: Tensor | None = None


class Features(NamedTuple):
    """Inputs of a head: inputs (B, N, C), pooled (B, G), positions (N, C) or None."""

    inputs: Tensor
    pooled: Tensor
    positions: Tensor | None = None


class Encoder(nn.Module):
    """Base class of the encoders: the widths that a tower needs to know, and freezing.

    Attributes:
        input_dim: C, channels of the inputs of the head.
        pooled_groups: Dimensions of the parts of the global feature; their sum is G.
        frozen: The submodule `backbone` stays fixed.

    """

    input_dim: int
    pooled_groups: tuple[int, ...]
    frozen: bool = False

    def freeze(self) -> None:
        """Fix the backbone: no gradients, and evaluation mode for good."""
        if not hasattr(self, "backbone"):
            raise ValueError(f"{type(self).__name__} has no backbone to freeze; set frozen false")
        self.frozen = True
        self.get_submodule("backbone").requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Encoder:
        """Switch to training mode, except for a frozen backbone (its norms must not move)."""
        super().train(mode)
        if self.frozen:
            self.get_submodule("backbone").eval()
        return self


class Standardize(nn.Module):
    """Centre a feature (B, G) and scale each group of dimensions to a mean norm of one.

    The statistics are those that `fit` was given, fixed from then on and saved with the weights;
    before that the feature passes unchanged.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, groups: tuple[int, ...]) -> None:
        super().__init__()
        self.groups = groups
        self.register_buffer("mean", torch.zeros(sum(groups)))
        self.register_buffer("scale", torch.ones(sum(groups)))

    @torch.no_grad()
    def fit(self, features: Tensor) -> None:
        """Take the statistics of features (rows, G)."""
        self.mean.copy_(features.mean(dim=0))
        parts = torch.split(features - self.mean, list(self.groups), dim=1)
        scales = [1 / part.norm(dim=1).mean().clamp(min=1e-6) for part in parts]
        self.scale.copy_(
            torch.cat([s.expand(size) for s, size in zip(scales, self.groups, strict=True)])
        )

    def forward(self, features: Tensor) -> Tensor:
        """Centre and scale (B, G)."""
        return (features - self.mean) * self.scale
