"""Where scores come from, tile by tile: sets, a matrix in memory or on disk, or a mean of several.

A source has ``shape`` (rows, columns), ``tile(rows, columns)`` for two slices, and
``pairs(rows, columns)`` (M,) for two arrays of positions. No source ever holds all scores of sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from divse.sets import EmbeddingSets
from divse.similarity import score, score_pairs

Array = npt.NDArray[Any]
PAIRS = 1 << 14  # pairs scored at a time


class Scores(Protocol):
    """A matrix of scores that is made piece by piece."""

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""

    def tile(self, rows: slice, columns: slice) -> Array:
        """Scores of a window, floating-point and without NaN."""

    def pairs(self, rows: Array, columns: Array) -> Array:
        """Scores of single pairs (M,)."""


class SetScores:
    """Scores of two collections of sets; ``options`` go to `divse.score` (alpha, impl, ...)."""

    def __init__(
        self,
        rows: EmbeddingSets,
        columns: EmbeddingSets,
        similarity: str = "smooth_chamfer",
        *,
        device: Any = None,
        **options: Any,
    ) -> None:
        if rows.dim != columns.dim:
            raise ValueError(f"sets of {rows.dim} and of {columns.dim} dimensions have no scores")
        self.rows, self.columns = rows, columns
        self.similarity, self.device, self.options = similarity, device, options

    @property
    def shape(self) -> tuple[int, int]:
        """(row sets, column sets)."""
        return len(self.rows), len(self.columns)

    def tile(self, rows: slice, columns: slice) -> Array:
        """Scores of a window, (b - a, d - c)."""
        return self._call(score, self.rows[rows], self.columns[columns])

    def pairs(self, rows: Array, columns: Array) -> Array:
        """Scores of single pairs (M,), a few thousand at a time."""
        parts = [
            self._call(
                score_pairs,
                self.rows[rows[start : start + PAIRS]],
                self.columns[columns[start : start + PAIRS]],
            )
            for start in range(0, len(rows), PAIRS)
        ]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def _call(self, function: Any, a: EmbeddingSets, b: EmbeddingSets) -> Array:
        first, second = a.torch(self.device), b.torch(self.device)
        with torch.no_grad():
            found = function(first, second, self.similarity, unit_norm=False, **self.options)
        return checked(as_array(found))


class MatrixScores:
    """Scores that are there already: an array, or a memory-mapped file."""

    def __init__(self, matrix: Any) -> None:
        self.matrix = matrix if isinstance(matrix, np.ndarray) else as_array(matrix)
        if self.matrix.ndim != 2 or 0 in self.matrix.shape:
            raise ValueError(
                f"scores must be a non-empty (images, captions) matrix, got {self.matrix.shape}"
            )
        if self.matrix.dtype.kind not in "fiu":
            raise TypeError(f"scores: got {self.matrix.dtype}, expected numbers")

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.matrix.shape[0], self.matrix.shape[1]

    def tile(self, rows: slice, columns: slice) -> Array:
        """Scores of a window."""
        return checked(np.asarray(self.matrix[rows, columns]))

    def pairs(self, rows: Array, columns: Array) -> Array:
        """Scores of single pairs (M,)."""
        return checked(np.asarray(self.matrix[rows, columns]))


class MeanScores:
    """An ensemble: the mean of the scores of several models, made tile by tile."""

    def __init__(self, members: Sequence[Scores]) -> None:
        shapes = {member.shape for member in members}
        if len(shapes) != 1:
            raise ValueError(
                f"an ensemble needs models of one and the same data, got scores of shapes "
                f"{sorted(shapes)}"
            )
        self.members, self.shape = list(members), shapes.pop()

    def tile(self, rows: slice, columns: slice) -> Array:
        """Mean scores of a window."""
        return self._mean([member.tile(rows, columns) for member in self.members])

    def pairs(self, rows: Array, columns: Array) -> Array:
        """Mean scores of single pairs (M,)."""
        return self._mean([member.pairs(rows, columns) for member in self.members])

    def _mean(self, parts: list[Array]) -> Array:
        total = parts[0].astype(np.result_type(*parts, np.float32), copy=True)
        for part in parts[1:]:
            total += part
        total /= len(parts)
        return total


def checked(scores: Array) -> Array:
    """Scores as floating-point numbers, none of them NaN."""
    if scores.dtype.kind != "f":
        return scores.astype(np.float64)
    if scores.size and np.isnan(scores.min()):  # the minimum of anything with a NaN is NaN
        raise ValueError("scores hold NaN: such a ranking has no meaning; check the embeddings")
    return scores


def as_array(values: Any) -> Array:
    """View a tensor, array or list as a numpy array on the host."""
    if not isinstance(values, torch.Tensor):
        return np.asarray(values)
    values = values.detach().cpu()
    return np.asarray((values.float() if values.dtype == torch.bfloat16 else values).numpy())
