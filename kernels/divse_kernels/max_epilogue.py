"""From the cosines of a tile to scores that are made of maxima alone: no exponential, no logarithm.

With the best cosine of each element, `rows = max(c, over L)` and `columns = max(c, over K)`:

    chamfer             (mean(rows, over K) + mean(columns, over L)) / 2
    maxsim              sum(rows, over K) where the queries lie along the rows, or else
                        sum(columns, over L); maxsim_mean: the mean instead
    mil                 max(rows, over K)
"""

import triton
import triton.language as tl

from divse_kernels.tiles import MASKED, by_column_set, by_row_set, max_row_sets, sum_row_sets


@triton.jit
def pairs_of_sets(x):
    """View what `sum_row_sets` or `max_row_sets` leave of `by_row_set` as `[M_SETS, N]`."""
    return tl.reshape(x, (x.shape[1] * x.shape[3], x.shape[5]))


@triton.jit
def best_of_rows(x, L2: tl.constexpr):
    """Maximum of every row over the elements of each column set: `[BLOCK_M, N_SETS]`."""
    return tl.max(by_column_set(x, L2), axis=1)


@triton.jit
def sum_best_of_rows(
    x,  # [BLOCK_M, BLOCK_N], MASKED in columns that are padding
    row_inside,  # [BLOCK_M]
    L2: tl.constexpr,
    ROW_PADDING: tl.constexpr,
    OUTER: tl.constexpr,
    PAIR: tl.constexpr,
    LANE: tl.constexpr,
):
    """Sum of the best cosines of the elements of row sets: `[M_SETS, N_SETS]`."""
    best = best_of_rows(x, L2)
    if ROW_PADDING:
        best = tl.where(row_inside[:, None], best, 0.0)
    return pairs_of_sets(sum_row_sets(by_row_set(best, OUTER, PAIR, LANE)))


@triton.jit
def sum_best_of_columns(
    x,  # [BLOCK_M, BLOCK_N], MASKED in rows that are padding
    column_inside,  # [BLOCK_N]
    L2: tl.constexpr,
    COLUMN_PADDING: tl.constexpr,
    OUTER: tl.constexpr,
    PAIR: tl.constexpr,
    LANE: tl.constexpr,
):
    """Sum of the best cosines of the elements of column sets: `[M_SETS, N_SETS]`."""
    best = pairs_of_sets(max_row_sets(by_row_set(x, OUTER, PAIR, LANE)))
    if COLUMN_PADDING:
        best = tl.where(column_inside[None, :], best, 0.0)
    return tl.sum(by_column_set(best, L2), axis=1)


@triton.jit
def reduce_maxima(
    cosines,  # [BLOCK_M, BLOCK_N]
    row_inside,  # [BLOCK_M]
    column_inside,  # [BLOCK_N]
    row_sizes,  # [M_SETS] float32
    column_sizes,  # [N_SETS] float32
    L2: tl.constexpr,
    ROW_PADDING: tl.constexpr,
    COLUMN_PADDING: tl.constexpr,
    OUTER: tl.constexpr,
    PAIR: tl.constexpr,
    LANE: tl.constexpr,
    SIMILARITY: tl.constexpr,
    QUERY_ROWS: tl.constexpr,
):
    """Scores `[M_SETS, N_SETS]` of the pairs of sets of a tile."""
    ONE_SIDED: tl.constexpr = SIMILARITY == "maxsim" or SIMILARITY == "maxsim_mean"  # noqa: PLR1714
    # One direction needs the padding of the other side masked, and no more.
    MASK_ROWS: tl.constexpr = ROW_PADDING and not (ONE_SIDED and QUERY_ROWS)
    MASK_COLUMNS: tl.constexpr = COLUMN_PADDING and (QUERY_ROWS or not ONE_SIDED)
    x = cosines
    if MASK_ROWS and MASK_COLUMNS:
        x = tl.where(row_inside[:, None] & column_inside[None, :], x, MASKED)
    elif MASK_ROWS:
        x = tl.where(row_inside[:, None], x, MASKED)
    elif MASK_COLUMNS:
        x = tl.where(column_inside[None, :], x, MASKED)
    if SIMILARITY == "mil":
        return pairs_of_sets(max_row_sets(by_row_set(best_of_rows(x, L2), OUTER, PAIR, LANE)))
    elif ONE_SIDED:
        if QUERY_ROWS:
            scores = sum_best_of_rows(x, row_inside, L2, ROW_PADDING, OUTER, PAIR, LANE)
            sizes = row_sizes[:, None]
        else:
            scores = sum_best_of_columns(x, column_inside, L2, COLUMN_PADDING, OUTER, PAIR, LANE)
            sizes = column_sizes[None, :]
        return scores / sizes if SIMILARITY == "maxsim_mean" else scores
    else:
        rows = sum_best_of_rows(x, row_inside, L2, ROW_PADDING, OUTER, PAIR, LANE)
        columns = sum_best_of_columns(x, column_inside, L2, COLUMN_PADDING, OUTER, PAIR, LANE)
        return 0.5 * (rows / row_sizes[:, None] + columns / column_sizes[None, :])
