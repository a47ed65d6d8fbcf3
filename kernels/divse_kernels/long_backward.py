"""Gradients of the scores of long sets; what is stored of all cosines is one bounded chunk.

The kernel of long_weights.py writes the weights of some row sets x some column sets, and cuBLAS
multiplies them (products.py), as for short sets.
"""

from dataclasses import dataclass, replace

import torch
import triton
from torch import Tensor

from divse_kernels.launch import Side, launches, on_device, problem
from divse_kernels.long_tile import Pass, column_sets_a_program, passes, tile_constants
from divse_kernels.long_weights import long_weights
from divse_kernels.problem import SMOOTH_CHAMFER, Problem, padded
from divse_kernels.products import Chunk, Lost, weighted_sums
from divse_kernels.score_backward import LARGEST
from divse_kernels.tuning import Tile, long_weights_tile, named_weights_tile


def constants(task: Problem, tile: Tile, one: Pass, k2: int, add: bool) -> dict[str, object]:
    """Compile-time arguments of the kernel."""
    return {
        **tile_constants(task, tile, k2),
        "SHIFT": task.factors < 2,  # products with the reciprocals of sums stay in range
        "ROWS": one.rows,
        "COLUMNS": one.columns,
        "ADD": add,
    }


@dataclass(frozen=True)
class Written:
    """What a launch writes: weights (row sets, K, column sets, L) of any strides, by d loss / d
    score (row sets, column sets), and on request what is summed of them."""

    weights: Tensor
    grad_scores: Tensor
    scale: Tensor | None = None  # of the weights; then what rounding takes of them is summed
    moment: Tensor | None = None  # float64, to which sums of weight * alpha * cosine are added

    @property
    def turned(self) -> "Written":
        """The same with the sides exchanged."""
        weights = self.weights.permute(2, 3, 0, 1)
        return replace(self, weights=weights, grad_scores=self.grad_scores.mT)


def write(
    rows: Side,
    columns: Side,
    written: Written,
    alpha: float | Tensor,
    similarity: str,
    one: Pass,
    add: bool = False,
    ids: tuple[Tensor, Tensor] | None = None,
) -> Lost | None:
    """Launch the kernel for one pass; returns what rounding took along the rows and the columns.

    `ids`: the row sets (R,) and the column sets of each (R, M), all in bounds; None: all with all.
    """
    task = problem(rows, columns, alpha, similarity)
    row_sets, k, column_sets, size = written.weights.shape
    span = zip(written.weights.shape, written.weights.stride(), strict=True)
    if sum((count - 1) * stride for count, stride in span) >= 1 << 31:
        raise ValueError(f"weights {tuple(written.weights.shape)} are too many for one launch")
    task = replace(task, row_sets=row_sets, column_sets=column_sets)
    tile = long_weights_tile(task) if ids is None else named_weights_tile(task)
    k2 = min(padded(k), tile.block_m) if ids is None else tile.block_m
    parts = triton.cdiv(k, k2)
    m_tiles = triton.cdiv(row_sets * parts, tile.block_m // k2)
    walk = column_sets_a_program(task, m_tiles)
    walks = triton.cdiv(column_sets, walk)
    new = written.grad_scores.new_zeros
    lost, moments, bests = (None, None), None, (None, None)
    if written.scale is not None:
        lost = new(walks, row_sets * k), new(m_tiles, column_sets * size)
    if written.moment is not None:
        moments = new(m_tiles * walks)
    if similarity == "mil" and parts > 1:
        bests = new(row_sets * parts, column_sets), new(row_sets * parts, column_sets)

    def launch(measure: int) -> None:
        launches["long_weights"] += 1
        with on_device(rows.values.device):
            long_weights[(m_tiles * walks,)](
                rows.values,
                rows.lengths,
                None if ids is None else ids[0],
                columns.values,
                columns.lengths,
                None if ids is None else ids[1],
                written.weights,
                written.grad_scores,
                *lost,
                written.scale,
                moments,
                *bests,
                alpha,
                task.dims,
                k,
                size,
                parts,
                row_sets,
                column_sets,
                walk,
                measure,
                *rows.strides,
                *columns.strides,
                *written.grad_scores.stride(),
                *written.weights.stride(),
                **constants(task, tile, one, k2, add),
                **tile.options,
            )

    if bests[0] is not None:
        launch(measure=1)
        join_parts(*bests, parts)
    launch(measure=0)
    if written.moment is not None:
        written.moment.add_(moments.sum(dtype=torch.float64))
    return None if written.scale is None else tuple(x.sum(0) for x in lost)


def join_parts(best: Tensor, equal: Tensor, parts: int) -> None:
    """Give every part (slots, column sets) the best of its set, and how many rows have it."""
    of_parts = best.view(-1, parts, best.shape[1])
    top = of_parts.amax(1, keepdim=True)
    counts = equal.view(of_parts.shape)
    counts.copy_(counts.where(of_parts == top, 0.0).sum(1, keepdim=True))
    of_parts.copy_(top)


def write_all(
    queries: Side,
    gallery: Side,
    written: Written,
    alpha: float | Tensor,
    similarity: str,
    ids: tuple[Tensor, Tensor] | None = None,
) -> Lost | None:
    """All passes; `written` has the queries along its rows, and so has what comes back.

    `ids`: the queries and the gallery sets of some pairs, (P,) each; then `written` has one column
    set.
    """
    sums: Lost | None = None
    for place, one in enumerate(passes(queries, gallery, similarity)):
        sides, there, named = (queries, gallery), written, ids
        if one.gallery_rows:
            sides, named = (gallery, queries), None if ids is None else ids[::-1]
            there = written.turned
            if ids is not None:
                # a pair stays a row, with the elements of the other set
                there = replace(written, weights=written.weights.permute(0, 3, 2, 1))
        named = None if named is None else (named[0], named[1][:, None])
        lost = write(*sides, there, alpha, similarity, one, add=place > 0, ids=named)
        if lost is not None:
            lost = lost[::-1] if one.gallery_rows else lost
            sums = lost if sums is None else tuple(a + b for a, b in zip(sums, lost, strict=True))
    return sums


@dataclass(frozen=True)
class _Fill:
    """Fill a chunk with weights; add to the moment."""

    queries: Side
    gallery: Side
    grad_scores: Tensor
    alpha: float | Tensor
    similarity: str
    scale: Tensor | None
    moment: Tensor | None

    def __call__(self, chunk: Chunk) -> Lost | None:
        rows = slice(chunk.first_row, chunk.end_row)
        columns = slice(chunk.first_column, chunk.end_column)
        queries, gallery = self.queries[rows], self.gallery[columns]
        shape = (queries.count, queries.size), (gallery.count, gallery.size)
        weights = chunk.weights.unflatten(0, shape[0]).unflatten(2, shape[1])
        written = Written(weights, self.grad_scores[rows, columns], self.scale, self.moment)
        return write_all(queries, gallery, written, self.alpha, self.similarity)


def gradients(
    queries: Side,
    gallery: Side,
    grad_scores: Tensor,
    alpha: float | Tensor,
    similarity: str = SMOOTH_CHAMFER,
    wanted: tuple[bool, bool, bool] = (True, True, False),
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Gradients for the queries and the gallery in their type, where `wanted`, and a moment.

    `grad_scores` (B, N) of any strides. The moment, a float64 and 0 unless wanted, is the sum over
    all pairs of weight * alpha * cosine.
    """
    sides = queries, gallery
    moment = queries.values.new_zeros((), dtype=torch.float64)
    if queries.count == 0 or gallery.count == 0:
        none = (
            torch.zeros_like(s.values) if w else None
            for s, w in zip(sides, wanted[:2], strict=True)
        )
        return *none, moment
    scale = None
    if queries.values.dtype != torch.float32:
        largest = torch.linalg.vector_norm(grad_scores, torch.inf).float()
        scale = LARGEST / largest.clamp_min(1e-30)
    fill = _Fill(*sides, grad_scores, alpha, similarity, scale, moment if wanted[2] else None)
    sums = weighted_sums(*sides, fill, wanted[:2], scale)
    grads = (
        None if s is None else s.view(side.values.shape).to(side.values.dtype)
        for s, side in zip(sums, sides, strict=True)
    )
    return *grads, moment if scale is None else moment / scale
