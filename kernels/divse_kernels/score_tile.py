"""The scores of one tile: cosines of whole sets, then a number for each pair of sets.

The cosines live in registers. Every kernel that needs scores of pairs (all pairs, the best of a
gallery, hardest negatives, sums of a loss) is this tile with another ending. A side's sets lie one
after the other in memory, or are named by ids.
"""

import triton
import triton.language as tl

from divse_kernels.epilogue import reduce_cosines
from divse_kernels.problem import Problem, padded
from divse_kernels.tiles import cosine_tile, element_offsets, row_order, set_lengths
from divse_kernels.tuning import Tile


@triton.jit
def set_index(ids_ptr, slots, count):
    """Sets in the given slots: the slots themselves, or the ids there; clamped to be in bounds.

    Indices past an end are clamped, so that every load is in bounds: what it gives is never stored.
    """
    slots = tl.minimum(slots, count - 1)
    if ids_ptr is None:
        return slots
    else:
        return tl.maximum(tl.load(ids_ptr + slots), 0)


@triton.jit
def tile_cosines(
    row_ptr,  # [sets, K, D]
    row_ids_ptr,  # [ROW_SETS] int64: which set is in each slot; or None: they lie in order
    row_lengths_ptr,  # [sets] int64, or None
    first_row,  # the first slot of the tile
    ROW_SETS,  # number of slots
    stride_row_set,  # strides in units of 8 values
    stride_row_element,
    column_ptr,  # the same for the columns
    column_ids_ptr,
    column_lengths_ptr,
    first_column,
    COLUMN_SETS,
    stride_column_set,
    stride_column_element,
    D,
    K: tl.constexpr,
    L: tl.constexpr,
    L2: tl.constexpr,
    ROW_RAGGED: tl.constexpr,
    COLUMN_RAGGED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EVEN_D: tl.constexpr,  # BLOCK_D divides D
    OUTER: tl.constexpr,
    PAIR: tl.constexpr,
    LANE: tl.constexpr,
):
    """Cosines `[BLOCK_M, BLOCK_N]` of a tile, and which rows and columns are no padding."""
    N_SETS: tl.constexpr = BLOCK_N // L2
    row_slot, row_element = row_order(BLOCK_M, OUTER, PAIR, LANE)
    row_set = set_index(row_ids_ptr, first_row + row_slot, ROW_SETS)
    n = tl.arange(0, BLOCK_N)
    column_set = set_index(column_ids_ptr, first_column + n % N_SETS, COLUMN_SETS)
    column_element = n // N_SETS
    cosines = cosine_tile(
        row_ptr,
        element_offsets(
            row_set, tl.minimum(row_element, K - 1), stride_row_set, stride_row_element
        ),
        column_ptr,
        element_offsets(
            column_set, tl.minimum(column_element, L - 1), stride_column_set, stride_column_element
        ),
        D,
        BLOCK_M,
        BLOCK_N,
        BLOCK_D,
        EVEN_D,
    )
    row_inside = row_element < set_lengths(row_lengths_ptr, row_set, K, ROW_RAGGED)
    column_inside = column_element < set_lengths(column_lengths_ptr, column_set, L, COLUMN_RAGGED)
    return cosines, row_inside, column_inside


@triton.jit
def set_sizes(ids_ptr, lengths_ptr, slots, count, SIZE: tl.constexpr, RAGGED: tl.constexpr):
    """Number of elements of the sets in the given slots, in float32."""
    return set_lengths(lengths_ptr, set_index(ids_ptr, slots, count), SIZE, RAGGED).to(tl.float32)


@triton.jit
def tile_scores(
    row_ptr,
    row_ids_ptr,
    row_lengths_ptr,
    first_row,
    ROW_SETS,
    stride_row_set,
    stride_row_element,
    column_ptr,
    column_ids_ptr,
    column_lengths_ptr,
    first_column,
    COLUMN_SETS,
    stride_column_set,
    stride_column_element,
    alpha,  # float, or a pointer to one
    D,
    K: tl.constexpr,
    L: tl.constexpr,
    K2: tl.constexpr,
    L2: tl.constexpr,
    FACTORS: tl.constexpr,
    LOG_MEAN: tl.constexpr,
    ROW_RAGGED: tl.constexpr,
    COLUMN_RAGGED: tl.constexpr,
    ALPHA_ON_DEVICE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EVEN_D: tl.constexpr,
    POLYNOMIAL: tl.constexpr,
    OUTER: tl.constexpr,
    PAIR: tl.constexpr,
    LANE: tl.constexpr,
    SIMILARITY: tl.constexpr,
    QUERY_ROWS: tl.constexpr,
):
    """Scores `[M_SETS, N_SETS]` of the sets of a tile; arguments as in `tile_cosines`."""
    if ALPHA_ON_DEVICE:
        alpha = tl.load(alpha).to(tl.float32)
    cosines, row_inside, column_inside = tile_cosines(
        row_ptr,
        row_ids_ptr,
        row_lengths_ptr,
        first_row,
        ROW_SETS,
        stride_row_set,
        stride_row_element,
        column_ptr,
        column_ids_ptr,
        column_lengths_ptr,
        first_column,
        COLUMN_SETS,
        stride_column_set,
        stride_column_element,
        D,
        K,
        L,
        L2,
        ROW_RAGGED,
        COLUMN_RAGGED,
        BLOCK_M,
        BLOCK_N,
        BLOCK_D,
        EVEN_D,
        OUTER,
        PAIR,
        LANE,
    )
    m = first_row + tl.arange(0, BLOCK_M // K2)
    n = first_column + tl.arange(0, BLOCK_N // L2)
    return reduce_cosines(
        cosines,
        row_inside,
        column_inside,
        set_sizes(row_ids_ptr, row_lengths_ptr, m, ROW_SETS, K, ROW_RAGGED),
        set_sizes(column_ids_ptr, column_lengths_ptr, n, COLUMN_SETS, L, COLUMN_RAGGED),
        alpha,
        K,
        L,
        K2,
        L2,
        FACTORS,
        LOG_MEAN,
        ROW_RAGGED,
        COLUMN_RAGGED,
        POLYNOMIAL,
        OUTER,
        PAIR,
        LANE,
        SIMILARITY,
        QUERY_ROWS,
    )


def constants(task: Problem, tile: Tile, log_mean: bool) -> dict[str, int | bool | str]:
    """Compile-time arguments of `tile_scores`."""
    return {
        **task.constants,
        **tile.constants,
        **tile.row_order(padded(task.row_size)),
        "FACTORS": task.factors,
        "LOG_MEAN": log_mean,
        "EVEN_D": task.dims % tile.block_d == 0,
        "POLYNOMIAL": tile.polynomial,
        "SIMILARITY": task.similarity,
        "QUERY_ROWS": task.query_rows,
    }
