"""Scores of sets of up to a thousand elements: a program walks over column sets, block by block.

Row sets lie in a tile as in tiles.py, several short ones side by side, so that they share every
element that is read of a column set. A set of more than BLOCK_M elements takes several tiles, its
parts: what its rows sum up to is added (or compared) afterwards. Columns need their whole row set
in one tile. So the launcher does one of three things:

    one direction                   MaxSim: rows are the queries, whatever their size
    both, in one pass               a side of at most BLOCK_M elements lies along the rows
    both, in two passes             the second with the sides exchanged
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from divse_kernels.launch import Side, launches, on_device, problem
from divse_kernels.long_reduction import extend_rows, finish_rows, sum_columns, weigh
from divse_kernels.problem import ONE_SIDED, SHIFTED, SMOOTH_CHAMFER, Problem, padded
from divse_kernels.tiles import LOG2_E, MASKED, bound, cosine_tile, dot, row_order
from divse_kernels.tuning import PROCESSORS, Tile, long_tile

LONGEST = 1024
WHOLE = 128  # elements that fit in the rows of every tile of tuning.long_tile
SHORT = 32
WALKED = 4096  # elements that a program walks over, if sets are short and many


@dataclass(frozen=True)
class PackedSide(Side):
    """Sets one after the other without padding: values (1, total, D), set n from starts[n]."""

    starts: Tensor  # (count + 1,) int64
    longest: int

    @property
    def count(self) -> int:
        """Number of sets."""
        return len(self.starts) - 1

    @property
    def size(self) -> int:
        """Number of elements of the largest set."""
        return self.longest

    @property
    def ragged(self) -> bool:
        """Whether some sets may be smaller."""
        return True


@triton.jit
def extent(starts_ptr, lengths_ptr, sets, stride_set, stride_element, SIZE, RAGGED: tl.constexpr):
    """Where sets begin, in units of 8 values, and how many elements they have."""
    if starts_ptr is not None:
        start = tl.load(starts_ptr + sets)
        return start * stride_element, (tl.load(starts_ptr + sets + 1) - start).to(tl.int32)
    elif RAGGED:
        return sets.to(tl.int64) * stride_set, tl.load(lengths_ptr + sets).to(tl.int32)
    else:
        return sets.to(tl.int64) * stride_set, sets * 0 + SIZE


@triton.jit
def load_elements(ptr, offsets, D, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr):
    """Whole elements at the given offsets, `[len(offsets), BLOCK_D]`."""
    dims = tl.arange(0, BLOCK_D)
    ptrs = ptr + offsets[:, None] + dims[None, :]
    if EVEN_D:
        return tl.load(ptrs)
    else:
        return tl.load(ptrs, mask=dims[None, :] < D, other=0.0)


@triton.jit
def long_sets(
    row_ptr,  # [ROW_SETS, K, D], or [total, D]
    row_starts_ptr,  # [ROW_SETS + 1] int64 where the sets are packed, or None
    row_lengths_ptr,  # [ROW_SETS] int64, or None
    column_ptr,  # the same for the columns
    column_starts_ptr,
    column_lengths_ptr,
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
    row_first, row_length = extent(
        row_starts_ptr, row_lengths_ptr, slot // PARTS, stride_row_set, stride_row_element, K,
        ROW_RAGGED,
    )  # fmt: skip
    row_inside = row_element < row_length
    row_element = tl.minimum(row_element, row_length - 1)
    row_offsets = (row_first + row_element.to(tl.int64) * stride_row_element) * 8
    m = first_slot + tl.arange(0, M_SETS)
    _, row_sizes = extent(
        row_starts_ptr, row_lengths_ptr, tl.minimum(m, ROW_SLOTS - 1) // PARTS, stride_row_set,
        stride_row_element, K, ROW_RAGGED,
    )  # fmt: skip
    row_sizes = row_sizes.to(tl.float32)

    n = tl.arange(0, BLOCK_N)
    if RESIDENT:
        rows = load_elements(row_ptr, row_offsets, D, BLOCK_D, EVEN_D)
    # A part that lies past the end of a short set has nothing to walk for.
    anything = tl.max(row_inside.to(tl.int32), axis=0)

    for step in range(0, bound(tl.minimum(WALK, COLUMN_SETS - first_set))):
        column_set = first_set + step
        column_first, length = extent(
            column_starts_ptr, column_lengths_ptr, column_set, stride_column_set,
            stride_column_element, L, COLUMN_RAGGED,
        )  # fmt: skip
        top = tl.full((BLOCK_M,), MASKED, tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        columns_sum = tl.zeros((M_SETS,), tl.float32)
        for begin in range(0, bound(length * anything), BLOCK_N):
            column_inside = begin + n < length
            element = tl.minimum(begin + n, length - 1).to(tl.int64)
            offsets = (column_first + element * stride_column_element) * 8
            if RESIDENT:
                columns = load_elements(column_ptr, offsets, D, BLOCK_D, EVEN_D)
                x = dot(rows, columns.T, tl.zeros((BLOCK_M, BLOCK_N), tl.float32))
            else:
                x = cosine_tile(
                    row_ptr, row_offsets, column_ptr, offsets, D, BLOCK_M, BLOCK_N, BLOCK_D, EVEN_D
                )
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
            sums = finish_rows(
                top, total, row_inside, row_shift, SIMILARITY, SHIFT, OUTER, PAIR, LANE
            )
            scores += weigh(sums, row_sizes, alpha, SIMILARITY)
        if COLUMNS:
            if LOG_MEAN:
                columns_sum -= column_size * tl.log2(row_sizes)
            scores += weigh(columns_sum, column_size, alpha, SIMILARITY)
        offset = column_set.to(tl.int64) * stride_score_column
        tl.store(score_ptr + m.to(tl.int64) * stride_score_row + offset, scores, mask=m < ROW_SLOTS)


def constants(
    task: Problem, tile: Tile, log_mean: bool, rows: bool, columns: bool
) -> dict[str, int | bool | str]:
    """Compile-time arguments of the kernel; `rows`, `columns`: the directions that are needed."""
    k2 = min(padded(task.row_size), tile.block_m)
    return {
        **tile.constants,
        **tile.row_order(k2),
        "K2": k2,
        "SIMILARITY": task.similarity,
        "SHIFT": task.factors == SHIFTED,
        "LOG_MEAN": log_mean and task.similarity == SMOOTH_CHAMFER,
        "ROWS": rows,
        "COLUMNS": columns,
        "ROW_RAGGED": task.row_ragged,
        "COLUMN_RAGGED": task.column_ragged,
        "ROW_PADDING": task.row_ragged or task.row_size % k2 != 0,
        "COLUMN_PADDING": task.column_ragged or task.column_size % tile.block_n != 0,
        "ALPHA_ON_DEVICE": task.alpha is None,
        "EVEN_D": task.dims % tile.block_d == 0,
        "RESIDENT": task.dims <= tile.block_d,
    }


def column_sets_a_program(task: Problem, m_tiles: int) -> int:
    """So many that rows are seldom read for a short set, and that programs fill the device."""
    walk = min(32, WALKED // task.column_size)
    return max(1, min(walk, task.column_sets * m_tiles // (8 * PROCESSORS[task.arch])))


def one_pass(
    rows: Side,
    columns: Side,
    out: Tensor,  # (row sets, column sets) float32, of any strides
    alpha: float | Tensor,
    log_mean: bool,
    similarity: str,
    directions: tuple[bool, bool],  # best (or sum) for each row, for each column
) -> None:
    """Launch the kernel and write its scores to `out`."""
    task = problem(rows, columns, alpha, similarity)
    tile = long_tile(task)
    k2 = min(padded(task.row_size), tile.block_m)
    parts = triton.cdiv(task.row_size, k2)
    slots = rows.count * parts
    shares = out if parts == 1 else out.new_empty(slots, columns.count)
    m_tiles = triton.cdiv(slots, tile.block_m // k2)
    walk = column_sets_a_program(task, m_tiles)
    launches["long_sets"] += 1
    with on_device(out.device):
        long_sets[(m_tiles * triton.cdiv(columns.count, walk),)](
            rows.values,
            rows.starts if isinstance(rows, PackedSide) else None,
            rows.lengths,
            columns.values,
            columns.starts if isinstance(columns, PackedSide) else None,
            columns.lengths,
            shares,
            alpha,
            task.dims,
            task.row_size,
            task.column_size,
            parts,
            slots,
            columns.count,
            walk,
            *rows.strides,
            *columns.strides,
            *shares.stride(),
            **constants(task, tile, log_mean, *directions),
            **tile.options,
        )
    if parts > 1:
        shares = shares.view(rows.count, parts, columns.count)
        out.copy_(shares.amax(1) if similarity == "mil" else shares.sum(1))


def _whole(queries: Side, gallery: Side) -> int:
    """Elements of a side that lies along the rows for both directions in one pass.

    On Blackwell a thread holds one row, and a second product costs less than all the shuffles of
    sums over rows; only blocks of few elements would cost more.
    """
    return SHORT if problem(queries, gallery, 1.0).arch == "blackwell" else WHOLE


def scores(
    queries: Side, gallery: Side, alpha: float | Tensor, log_mean: bool, similarity: str
) -> Tensor:
    """Scores (B, N) float32 of B query sets and N gallery sets of up to LONGEST elements."""
    device = queries.values.device
    out = torch.empty(queries.count, gallery.count, dtype=torch.float32, device=device)
    if out.numel() == 0:
        return out
    how = alpha, log_mean, similarity
    if similarity in ONE_SIDED:
        # Many short sets would each leave most of a block of columns empty.
        if gallery.size <= SHORT < queries.size:
            one_pass(gallery, queries, out.mT, *how, (False, True))
        else:
            one_pass(queries, gallery, out, *how, (True, False))
    elif similarity == "mil" or min(queries.size, gallery.size) <= _whole(queries, gallery):
        both = (True, similarity != "mil")
        if queries.size <= gallery.size:
            one_pass(queries, gallery, out, *how, both)
        else:
            one_pass(gallery, queries, out.mT, *how, both)
    else:
        back = torch.empty_like(out)
        one_pass(queries, gallery, out, *how, (True, False))
        one_pass(gallery, queries, back.mT, *how, (True, False))
        out += back
    return out
