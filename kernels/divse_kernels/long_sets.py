"""Scores of sets of up to a thousand elements: a program walks over column sets, block by block.

Row sets lie in a tile as in tiles.py, several short ones side by side, so that they share every
element that is read of a column set. A set of more than BLOCK_M elements takes several tiles, its
parts: what its rows sum up to is added (or compared) afterwards. Which side lies along the rows,
and in how many passes, says long_tile.py.

Each row set meets all column sets, or those that it names: the candidates of a query, or the other
set of a pair. Then a tile holds one row set.
"""

import dataclasses
from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from divse_kernels.launch import Side, launches, on_device, problem
from divse_kernels.long_reduction import extend_rows, finish_rows, sum_columns, weigh
from divse_kernels.long_tile import (
    PackedSide,
    Pass,
    block_cosines,
    column_sets_a_program,
    extent,
    passes,
    resident_rows,
    tile_constants,
)
from divse_kernels.problem import SHIFTED, SMOOTH_CHAMFER, Problem, padded
from divse_kernels.tiles import LOG2_E, MASKED, bound, row_order
from divse_kernels.tuning import Tile, long_tile, named_tile

Launch = Callable[[Pass, Tensor], None]


@triton.jit
def long_sets(
    row_ptr,  # [ROW_SETS, K, D], or [total, D]
    row_starts_ptr,  # [ROW_SETS + 1] int64 where the sets are packed, or None
    row_lengths_ptr,  # [ROW_SETS] int64, or None
    row_ids_ptr,  # [ROW_SLOTS / PARTS] int64: which set is in each slot; or None: they lie in order
    column_ptr,  # the same for the columns
    column_starts_ptr,
    column_lengths_ptr,
    column_ids_ptr,  # [ROW_SLOTS / PARTS, COLUMN_SETS] int64, -1: none; or None: all of them
    score_ptr,  # [ROW_SLOTS, COLUMN_SETS] float32
    alpha,  # float, or a pointer to one
    D,
    K,
    L,
    PARTS,  # tiles that a row set takes, if it takes more than one
    ROW_SLOTS,  # ROW_SETS * PARTS
    COLUMN_SETS,
    WALK,  # column sets of one program
    stride_row_set,  # strides of the inputs in units of 8 values
    stride_row_element,
    stride_column_set,
    stride_column_element,
    stride_score_row,
    stride_score_column,
    K2: tl.constexpr,
    SIMILARITY: tl.constexpr,
    SHIFT: tl.constexpr,
    LOG_MEAN: tl.constexpr,
    ROWS: tl.constexpr,  # the directions that are needed
    COLUMNS: tl.constexpr,
    ROW_RAGGED: tl.constexpr,
    COLUMN_RAGGED: tl.constexpr,
    ROW_PADDING: tl.constexpr,
    COLUMN_PADDING: tl.constexpr,
    ALPHA_ON_DEVICE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EVEN_D: tl.constexpr,  # BLOCK_D divides D
    RESIDENT: tl.constexpr,  # BLOCK_D holds D: the rows are loaded once
    OUTER: tl.constexpr,
    PAIR: tl.constexpr,
    LANE: tl.constexpr,
):
    """Scores, or shares of them, of one tile of row sets with WALK column sets."""
    M_SETS: tl.constexpr = BLOCK_M // K2
    SMOOTH: tl.constexpr = SIMILARITY == "smooth_chamfer"
    if ALPHA_ON_DEVICE:
        alpha = tl.load(alpha).to(tl.float32)
    m_tiles = tl.cdiv(ROW_SLOTS, M_SETS)
    first_slot = tl.program_id(0) % m_tiles * M_SETS
    first_set = tl.program_id(0) // m_tiles * WALK

    slot, row_element = row_order(BLOCK_M, OUTER, PAIR, LANE)
    slot = tl.minimum(first_slot + slot, ROW_SLOTS - 1)
    row_element += slot % PARTS * BLOCK_M
    m = first_slot + tl.arange(0, M_SETS)
    row_set, m_set = slot // PARTS, tl.minimum(m, ROW_SLOTS - 1) // PARTS
    if row_ids_ptr is not None:
        row_set, m_set = tl.load(row_ids_ptr + row_set), tl.load(row_ids_ptr + m_set)
    row_first, row_length = extent(
        row_starts_ptr, row_lengths_ptr, row_set, stride_row_set, stride_row_element, K, ROW_RAGGED
    )
    row_inside = row_element < row_length
    row_element = tl.minimum(row_element, row_length - 1)
    row_offsets = (row_first + row_element.to(tl.int64) * stride_row_element) * 8
    _, row_sizes = extent(
        row_starts_ptr, row_lengths_ptr, m_set, stride_row_set, stride_row_element, K, ROW_RAGGED
    )
    row_sizes = row_sizes.to(tl.float32)

    n = tl.arange(0, BLOCK_N)
    rows = resident_rows(row_ptr, row_offsets, D, BLOCK_D, EVEN_D, RESIDENT)
    # A part that lies past the end of a short set has nothing to walk for.
    anything = tl.max(row_inside.to(tl.int32), axis=0)

    for step in range(0, bound(tl.minimum(WALK, COLUMN_SETS - first_set))):
        place = (first_set + step).to(tl.int64)
        column_set = place
        if column_ids_ptr is not None:
            own = (first_slot // PARTS).to(tl.int64) * COLUMN_SETS
            named = tl.load(column_ids_ptr + own + place)
            column_set = tl.maximum(named, 0)
        column_first, length = extent(
            column_starts_ptr, column_lengths_ptr, column_set, stride_column_set,
            stride_column_element, L, COLUMN_RAGGED,
        )  # fmt: skip
        walked, counted = length * anything, row_inside
        if column_ids_ptr is not None:
            walked, counted = tl.where(named < 0, 0, walked), row_inside & (named >= 0)
        top = tl.full((BLOCK_M,), MASKED, tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        columns_sum = tl.zeros((M_SETS,), tl.float32)
        for begin in range(0, bound(walked), BLOCK_N):
            column_inside = begin + n < length
            x = block_cosines(
                row_ptr, row_offsets, rows, column_ptr, column_first,
                tl.minimum(begin + n, length - 1), stride_column_element, D,
                BLOCK_M, BLOCK_N, BLOCK_D, EVEN_D, RESIDENT,
            )  # fmt: skip
            if SMOOTH:
                x = x * (alpha * LOG2_E)
                if ROW_PADDING and COLUMNS:
                    x = tl.where(row_inside[:, None], x, MASKED)
                if COLUMN_PADDING and ROWS:
                    x = tl.where(column_inside[None, :], x, MASKED)
            if ROWS:
                top, total = extend_rows(x, top, total, SMOOTH, SHIFT)
            if COLUMNS:
                columns_sum += sum_columns(
                    x, column_inside, SMOOTH, SHIFT, COLUMN_PADDING, OUTER, PAIR, LANE
                )
        column_size = length.to(tl.float32)
        scores = tl.zeros((M_SETS,), tl.float32)
        if ROWS:
            row_shift = tl.log2(column_size) if LOG_MEAN else 0.0
            sums = finish_rows(top, total, counted, row_shift, SIMILARITY, SHIFT, OUTER, PAIR, LANE)
            scores += weigh(sums, row_sizes, alpha, SIMILARITY)
        if COLUMNS:
            if LOG_MEAN:
                columns_sum -= column_size * tl.log2(row_sizes)
            scores += weigh(columns_sum, column_size, alpha, SIMILARITY)
        if column_ids_ptr is not None:
            scores = tl.where(named < 0, float("-inf"), scores)
        offset = place * stride_score_column
        tl.store(score_ptr + m.to(tl.int64) * stride_score_row + offset, scores, mask=m < ROW_SLOTS)


def constants(
    task: Problem, tile: Tile, log_mean: bool, rows: bool, columns: bool, named: bool = False
) -> dict[str, int | bool | str]:
    """Compile-time arguments of the kernel; `rows`, `columns`: the directions that are needed."""
    k2 = tile.block_m if named else min(padded(task.row_size), tile.block_m)
    return {
        **tile_constants(task, tile, k2),
        "SHIFT": task.factors == SHIFTED,
        "LOG_MEAN": log_mean and task.similarity == SMOOTH_CHAMFER,
        "ROWS": rows,
        "COLUMNS": columns,
    }


@dataclasses.dataclass(frozen=True)
class Names:
    """Row sets by their ids (R,), and for each its own column sets (R, M), -1 = none."""

    rows: Tensor | None
    columns: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Number of row sets, and of the column sets of each."""
        return self.columns.shape[0], self.columns.shape[1]

    @property
    def turned(self) -> "Names":
        """Each pair of sets for itself, the column set along the rows."""
        count, own = self.shape
        rows = self.rows
        if rows is None:
            rows = torch.arange(count, device=self.columns.device)
        return Names(self.columns.flatten(), rows.repeat_interleave(own)[:, None])


def starts_of(side: Side) -> Tensor | None:
    """Where sets begin, if they are packed."""
    return side.starts if isinstance(side, PackedSide) else None


def one_pass(
    rows: Side,
    columns: Side,
    out: Tensor,  # (row sets, column sets of each) float32, of any strides
    alpha: float | Tensor,
    log_mean: bool,
    similarity: str,
    directions: tuple[bool, bool],  # best (or sum) for each row, for each column
    names: Names | None = None,
    tile_sets: int | None = None,  # choose the tile for so many row sets, whatever they are
) -> None:
    """Launch the kernel and write its scores to `out`."""
    task = problem(rows, columns, alpha, similarity)
    dtypes = rows.values.dtype, columns.values.dtype
    narrow = min(dtypes, key=lambda x: x.itemsize)
    task = dataclasses.replace(task, dtype=narrow, mixed=dtypes[0] != dtypes[1])
    row_sets, column_sets = out.shape
    if names is None:
        tile = long_tile(dataclasses.replace(task, row_sets=tile_sets or task.row_sets))
        k2 = min(padded(task.row_size), tile.block_m)
    else:
        tile = named_tile(task)
        k2 = tile.block_m
    parts = triton.cdiv(task.row_size, k2)
    slots = row_sets * parts
    shares = out if parts == 1 else out.new_empty(slots, column_sets)
    m_tiles = triton.cdiv(slots, tile.block_m // k2)
    walk = column_sets_a_program(dataclasses.replace(task, column_sets=column_sets), m_tiles)
    launches["long_sets"] += 1
    with on_device(out.device):
        long_sets[(m_tiles * triton.cdiv(column_sets, walk),)](
            rows.values,
            starts_of(rows),
            rows.lengths,
            None if names is None else names.rows,
            columns.values,
            starts_of(columns),
            columns.lengths,
            None if names is None else names.columns,
            shares,
            alpha,
            task.dims,
            task.row_size,
            task.column_size,
            parts,
            slots,
            column_sets,
            walk,
            *rows.strides,
            *columns.strides,
            *shares.stride(),
            **constants(task, tile, log_mean, *directions, named=names is not None),
            **tile.options,
        )
    if parts > 1:
        shares = shares.view(row_sets, parts, column_sets)
        out.copy_(shares.amax(1) if similarity == "mil" else shares.sum(1))


def scores(
    queries: Side,
    gallery: Side,
    alpha: float | Tensor,
    log_mean: bool,
    similarity: str,
    tile_sets: int | None = None,
) -> Tensor:
    """Scores (B, N) float32 of B query sets and N gallery sets of up to LONGEST elements.

    `tile_sets`: tiles are chosen for a gallery of so many sets, so that one score has the same bits
    in all parts of it.
    """
    device = queries.values.device
    out = torch.empty(queries.count, gallery.count, dtype=torch.float32, device=device)
    if out.numel() == 0:
        return out

    def launch(one: Pass, found: Tensor) -> None:
        sides = (gallery, queries, found.mT) if one.gallery_rows else (queries, gallery, found)
        sets = tile_sets if one.gallery_rows else None
        one_pass(*sides, alpha, log_mean, similarity, (one.rows, one.columns), tile_sets=sets)

    return _added(launch, passes(queries, gallery, similarity), out)


def named_scores(
    queries: Side,
    gallery: Side,
    names: Names,
    alpha: float | Tensor,
    log_mean: bool,
    similarity: str,
) -> Tensor:
    """Scores (R, M) float32 of query sets with gallery sets of their own, -inf where there is none.

    Ids of queries are in bounds, those of the gallery from -1 on.
    """
    device = queries.values.device
    out = torch.empty(names.shape, dtype=torch.float32, device=device)
    if out.numel() == 0 or gallery.count == 0:
        return out.fill_(-torch.inf)

    def launch(one: Pass, found: Tensor) -> None:
        if one.gallery_rows:
            own = names.turned
            own = Names(own.rows.clamp_min(0), own.columns)
            sides = gallery, queries, found.view(-1, 1)
        else:
            own, sides = names, (queries, gallery, found)
        one_pass(*sides, alpha, log_mean, similarity, (one.rows, one.columns), own)

    _added(launch, passes(queries, gallery, similarity), out)
    return out.masked_fill_(names.columns < 0, -torch.inf)


def _added(launch: Launch, planned: tuple[Pass, ...], out: Tensor) -> Tensor:
    """What the passes find, added up in `out`."""
    launch(planned[0], out)
    for one in planned[1:]:
        more = torch.empty_like(out)
        launch(one, more)
        out += more
    return out
