"""Gradients of losses of all pairs of sets, without anything of the size of all cosines in memory.

score_weights.py writes weights, d loss / d cosine, and cuBLAS multiplies them (products.py).
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from divse_kernels import score_tile
from divse_kernels.launch import Side, launches, on_device, problem
from divse_kernels.problem import SMOOTH_CHAMFER, Problem, padded
from divse_kernels.products import Chunk, Lost, weighted_sums
from divse_kernels.score_weights import score_weights
from divse_kernels.tuning import ROW_GROUP, Tile, lse_weights_tile, weights_tile

#: Largest d loss / d score in float16 weights, whose smallest are 2 ** -24.
LARGEST = 1024.0


@dataclass(frozen=True)
class LogSumExps:
    """Statistics of one side, (count,) each: log-sum-exps, their gradients, groups as int64."""

    values: Tensor
    grad: Tensor
    groups: Tensor

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor]:
        """What the kernel takes."""
        return self.values, self.grad, self.groups


@dataclass(frozen=True)
class Loss:
    """Where d loss / d score comes from, the queries along its rows.

    Either `grad_scores` (B, N) of any strides, or statistics of both sides and the temperature.
    """

    grad_scores: Tensor | None = None
    queries: LogSumExps | None = None
    gallery: LogSumExps | None = None
    temperature: float = 1.0

    @property
    def transposed(self) -> "Loss":
        """The same with the gallery along the rows."""
        scores = None if self.grad_scores is None else self.grad_scores.mT
        return Loss(scores, self.gallery, self.queries, self.temperature)

    def largest(self) -> Tensor:
        """A bound of d loss / d score."""
        if self.grad_scores is not None:
            return torch.linalg.vector_norm(self.grad_scores, torch.inf)
        sides = (self.queries, self.gallery)
        return sum(torch.linalg.vector_norm(x.grad, torch.inf) for x in sides) / self.temperature

    @property
    def arguments(self) -> tuple[Tensor | None, ...]:
        """What the kernel takes."""
        if self.grad_scores is not None:
            return (self.grad_scores, *(None,) * 6)
        return (None, *self.queries.arguments, *self.gallery.arguments)

    @property
    def strides(self) -> tuple[int, int]:
        """Steps of `grad_scores`."""
        return (0, 0) if self.grad_scores is None else self.grad_scores.stride()


def constants(task: Problem, tile: Tile, log_mean: bool) -> dict[str, int | bool | str]:
    """Compile-time arguments of the kernel."""
    return score_tile.constants(task, tile, log_mean) | ROW_GROUP


def gradients(
    queries: Side,
    gallery: Side,
    loss: Loss,
    alpha: float | Tensor,
    log_mean: bool = False,
    similarity: str = SMOOTH_CHAMFER,
    wanted: tuple[bool, bool, bool] = (True, True, False),
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Gradients for the queries and the gallery in their type, where `wanted`, and a moment.

    The moment, a float64 and 0 unless wanted, is the sum over all pairs of weight * alpha * cosine;
    for a loss of log-sum-exps less that of d loss / d score * alpha * score.
    """
    rows, columns, turned = queries, gallery, False
    task = problem(rows, columns, alpha, similarity)
    if task.rows < task.columns:  # tiles are tall
        rows, columns, turned, loss = gallery, queries, True, loss.transposed
        task = problem(rows, columns, alpha, similarity, query_rows=False)
    moment = rows.values.new_zeros((), dtype=torch.float64)
    wanted_sides = wanted[1::-1] if turned else wanted[:2]
    if rows.count == 0 or columns.count == 0:
        sides = (x.values if w else None for x, w in zip((queries, gallery), wanted, strict=False))
        return *(x if x is None else torch.zeros_like(x) for x in sides), moment
    scale = None
    if task.dtype != torch.float32:
        scale = LARGEST / loss.largest().float().clamp_min(1e-30)
    fill = _Launch(rows, columns, loss, alpha, log_mean, task, scale, moment if wanted[2] else None)
    sums = weighted_sums(rows, columns, fill, wanted_sides, scale)
    grads = [
        None if s is None else s.view(side.values.shape).to(side.values.dtype)
        for s, side in zip(sums, (rows, columns), strict=True)
    ]
    if scale is not None:
        moment = moment / scale
    return *(grads[::-1] if turned else grads), moment


@dataclass(frozen=True)
class _Launch:
    """Fill a chunk with weights; add to the moment."""

    rows: Side
    columns: Side
    loss: Loss
    alpha: float | Tensor
    log_mean: bool
    task: Problem
    scale: Tensor | None
    moment: Tensor | None

    def __call__(self, chunk: Chunk) -> Lost | None:
        task, given = self.task, self.loss.grad_scores is not None
        tile = weights_tile(task) if given else lse_weights_tile(task)
        rows = (chunk.end_row - chunk.first_row) * padded(task.row_size)
        columns = (chunk.end_column - chunk.first_column) * padded(task.column_size)
        tiles = triton.cdiv(rows, tile.block_m), triton.cdiv(columns, tile.block_n)
        moments, lost = None, (None, None)
        if self.moment is not None:
            moments = self.moment.new_empty(tiles[0] * tiles[1], dtype=torch.float32)
        if self.scale is not None:
            lost = tuple(
                self.scale.new_empty(count, size)
                for count, size in zip(tiles[::-1], chunk.weights.shape, strict=True)
            )
        launches["score_weights"] += 1
        with on_device(self.rows.values.device):
            score_weights[(tiles[0] * tiles[1],)](
                self.rows.values,
                self.columns.values,
                chunk.weights,
                *self.loss.arguments,
                *lost,
                self.scale,
                moments,
                self.rows.lengths,
                self.columns.lengths,
                self.alpha,
                1.0 / self.loss.temperature,
                task.dims,
                chunk.first_row,
                chunk.end_row,
                chunk.first_column,
                chunk.end_column,
                *self.rows.strides,
                *self.columns.strides,
                *self.loss.strides,
                chunk.weights.stride(0),
                **constants(task, tile, self.log_mean),
                **tile.options,
            )
        if moments is not None:
            self.moment.add_(moments.sum(dtype=torch.float64))
        return None if self.scale is None else tuple(x.sum(0) for x in lost)
