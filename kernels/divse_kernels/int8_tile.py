"""Upper bounds of the scores of one tile, from int8 codes: score_tile.py with raised cosines.

A gallery element y is u t + error: codes t, scale u, |error| <= p, its residual. A query element x
is s1 q1 + s2 q2 + rest: two parts, so that the query's own error all but vanishes. Then

    <x, y> <= u (s1 <q1, t> + s2 <q2, t>) + p reach + offset,  and  <x, y> <= ceiling

with reach >= |s1 q1 + s2 q2| and offset >= |rest| |y| and all rounding (int8_codes.py). Sums of
codes are integers, hence exact. The similarities are monotone in every cosine, so cosines raised
to their bounds give bounds of the scores.

Both parts are multiplied with the same loaded codes: a gallery element is read once, D + 8 bytes
with scale and residual, against 2 D in 16 bits: 1.98 times fewer at D = 1024, 1.94 at 256.
"""

import triton
import triton.language as tl

from divse_kernels import score_tile
from divse_kernels.epilogue import reduce_cosines
from divse_kernels.problem import Problem
from divse_kernels.tiles import bound, row_order, set_lengths
from divse_kernels.tuning import Tile


@triton.jit
def code_tile(
    row_ptr,  # int8
    row_offsets,  # [BLOCK_M] in units of 16 codes
    part_ptr,  # int8, the first parts of the columns and, further on, their second ones
    column_offsets,  # [BLOCK_N] in units of 16 codes
    part_offset,  # from a first part to its second one, in units of 16 codes
    D,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EVEN_D: tl.constexpr,  # BLOCK_D divides D
):
    """Dot products of codes with both parts, two `[BLOCK_M, BLOCK_N]` in int32."""
    dims = tl.arange(0, BLOCK_D)
    # Units of 16 tell the compiler that rows are aligned for vectors.
    row_ptrs = row_ptr + (row_offsets * 16)[:, None] + dims[None, :]
    first_ptrs = part_ptr + (column_offsets * 16)[:, None] + dims[None, :]
    second_ptrs = first_ptrs + part_offset * 16
    by_first = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    by_second = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for start in range(0, bound(D), BLOCK_D):
        if EVEN_D:
            rows = tl.load(row_ptrs)
            first = tl.load(first_ptrs)
            second = tl.load(second_ptrs)
        else:
            inside = dims[None, :] < D - start
            rows = tl.load(row_ptrs, mask=inside, other=0)
            first = tl.load(first_ptrs, mask=inside, other=0)
            second = tl.load(second_ptrs, mask=inside, other=0)
        by_first = tl.dot(rows, first.T, by_first, out_dtype=tl.int32)
        by_second = tl.dot(rows, second.T, by_second, out_dtype=tl.int32)
        row_ptrs += BLOCK_D
        first_ptrs += BLOCK_D
        second_ptrs += BLOCK_D
    return by_first, by_second


@triton.jit
def tile_bounds(
    code_ptr,  # [ROW_SETS, K, D] int8, contiguous
    scale_ptr,  # [ROW_SETS, K] float32
    residual_ptr,  # [ROW_SETS, K] float32
    row_lengths_ptr,  # [ROW_SETS] int64, or None
    first_row,
    ROW_SETS,
    part_ptr,  # [2, COLUMN_SETS, L, D] int8, contiguous
    terms_ptr,  # [5, COLUMN_SETS, L] float32: s1, s2, reach, offset, ceiling
    column_lengths_ptr,  # [COLUMN_SETS] int64, or None
    first_column,
    COLUMN_SETS,
    alpha,
    D,
    K: tl.constexpr,
    L: tl.constexpr,
    K2: tl.constexpr,
    L2: tl.constexpr,
    FACTORS: tl.constexpr,
    LOG_MEAN: tl.constexpr,
    ROW_RAGGED: tl.constexpr,
    COLUMN_RAGGED: tl.constexpr,
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
    """Bounds `[M_SETS, N_SETS]` of the scores of the sets of a tile; none is NaN."""
    N_SETS: tl.constexpr = BLOCK_N // L2
    row_slot, row_element = row_order(BLOCK_M, OUTER, PAIR, LANE)
    row_set = tl.minimum(first_row + row_slot, ROW_SETS - 1)
    row = row_set.to(tl.int64) * K + tl.minimum(row_element, K - 1)
    n = tl.arange(0, BLOCK_N)
    column_set = tl.minimum(first_column + n % N_SETS, COLUMN_SETS - 1)
    column_element = n // N_SETS
    column = column_set.to(tl.int64) * L + tl.minimum(column_element, L - 1)
    plane = tl.cast(COLUMN_SETS, tl.int64) * L
    by_first, by_second = code_tile(
        code_ptr,
        row * (D // 16),
        part_ptr,
        column * (D // 16),
        plane * (D // 16),
        D,
        BLOCK_M,
        BLOCK_N,
        BLOCK_D,
        EVEN_D,
    )
    scales = tl.load(scale_ptr + row)[:, None]
    residuals = tl.load(residual_ptr + row)[:, None]
    terms = terms_ptr + column
    value = by_first.to(tl.float32) * tl.load(terms)[None, :]
    value += by_second.to(tl.float32) * tl.load(terms + plane)[None, :]
    reach, offset = tl.load(terms + 2 * plane), tl.load(terms + 3 * plane)
    raised = scales * value + (residuals * reach[None, :] + offset[None, :])
    raised = tl.minimum(raised, tl.load(terms + 4 * plane)[None, :])

    m = tl.minimum(first_row + tl.arange(0, BLOCK_M // K2), ROW_SETS - 1)
    n = tl.minimum(first_column + tl.arange(0, N_SETS), COLUMN_SETS - 1)
    bounds = reduce_cosines(
        raised,
        row_element < set_lengths(row_lengths_ptr, row_set, K, ROW_RAGGED),
        column_element < set_lengths(column_lengths_ptr, column_set, L, COLUMN_RAGGED),
        set_lengths(row_lengths_ptr, m, K, ROW_RAGGED).to(tl.float32),
        set_lengths(column_lengths_ptr, n, L, COLUMN_RAGGED).to(tl.float32),
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
    return tl.where(bounds == bounds, bounds, float("inf"))  # where exponentials overflowed


def constants(task: Problem, tile: Tile, log_mean: bool) -> dict[str, int | bool | str]:
    """Compile-time arguments of `tile_bounds`."""
    chosen = score_tile.constants(task, tile, log_mean)
    del chosen["ALPHA_ON_DEVICE"]
    return chosen
