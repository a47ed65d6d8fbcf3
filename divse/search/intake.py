"""The way of sets into a gallery: split into blocks, checked, made unit vectors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from divse.sets import Array, EmbeddingSets

BLOCK_BYTES = 1 << 25  # 32 MiB of fp32 at a time: what writing a gallery holds in memory
# Vectors this near to unit length, by the rounding of their type, are kept bit for bit.
UNIT_TOLERANCE = {"float16": 1e-3, "float32": 1e-5, "float64": 1e-5}

SetsSource = EmbeddingSets | Array | Iterable[EmbeddingSets | Array]


def blocks_of(sets: SetsSource) -> Iterator[EmbeddingSets]:
    """Yield numpy EmbeddingSets of bounded size from sets, an array (N, K, D), or a stream."""
    if isinstance(sets, EmbeddingSets):
        yield from _split(sets)
    elif isinstance(sets, np.ndarray | torch.Tensor):
        yield from _split(EmbeddingSets(sets))
    elif isinstance(sets, Iterable):
        for part in sets:
            yield from _split(part if isinstance(part, EmbeddingSets) else EmbeddingSets(part))
    else:
        raise TypeError(
            f"sets: got {type(sets).__name__}, expected EmbeddingSets, an array (N, K, D), "
            "or an iterator of them"
        )


def _split(sets: EmbeddingSets) -> Iterator[EmbeddingSets]:
    step = max(1, BLOCK_BYTES // (4 * sets.k * sets.dim))
    for start in range(0, len(sets), step):
        yield sets[start : start + step].numpy()


def unit_block(block: EmbeddingSets, first_row: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the block's unit vectors (n, K, D) fp32 and its lengths (n,) int64.

    `first_row` is the row of the block's first set in the user's data, for the error that names a
    zero or non-finite element. What lies past a set's length may hold anything.
    """
    values = np.asarray(block.values, dtype=np.float32)
    lengths = np.full(len(values), block.k, dtype=np.int64)
    if block.lengths is not None:
        lengths = np.asarray(block.lengths, dtype=np.int64)
    real = np.arange(block.k) < lengths[:, None]
    # float64: the squares of any finite fp32 number neither overflow nor vanish in it
    norms = np.sqrt(np.einsum("nkd,nkd->nk", values, values, dtype=np.float64))
    bad = real & ~(np.isfinite(norms) & (norms > 0))
    if bad.any():
        row, element = (int(index) for index in np.argwhere(bad)[0])
        what = "zero" if norms[row, element] == 0 else "not finite"
        raise ValueError(
            f"row {first_row + row}: element {element} is {what}; every element of a gallery needs "
            "a direction: leave the row out, or its element by a shorter length"
        )
    off = real & (np.abs(norms - 1) > UNIT_TOLERANCE[np.asarray(block.values).dtype.name])
    if off.any():
        values = values.copy()
        values[off] = values[off] / norms[off][:, None]
    return values, lengths
