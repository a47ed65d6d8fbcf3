"""From the cosines of a tile to a score for each of its pairs of sets.

Smooth-Chamfer is here; what is made of maxima alone is in max_epilogue.py. For row sets of K
elements and column sets of L elements, with c = cosines of a pair of sets:

    rows, columns = logsumexp(alpha * c, over L), logsumexp(alpha * c, over K)
    scores = (mean(rows, over K) + mean(columns, over L)) / (2 * alpha)
"""

import triton
import triton.language as tl

from divse_kernels.max_epilogue import reduce_maxima
from divse_kernels.tiles import (
    LN_2,
    LOG2_E,
    MASKED,
    by_column_set,
    by_row_set,
    exp2_by_polynomial,
    log2,
    max_row_sets,
    product,
    sum_row_sets,
)


@triton.jit
def sum_row_sets_of_logs(
    sums,  # [BLOCK_M, N_SETS]
    FACTORS: tl.constexpr,
    OUTER: tl.constexpr,
    PAIR: tl.constexpr,
    LANE: tl.constexpr,
):
    """Logarithms of the sums, added up over the elements of row sets: `[M_SETS, N_SETS]`."""
    x = by_row_set(sums, OUTER, PAIR, LANE)
    if PAIR == 2 and FACTORS >= 2:
        x = product(x, 2)
        if OUTER == 2 and FACTORS >= 4:  # noqa: SIM108
            logs = log2(product(x, 0))
        else:
            logs = tl.sum(log2(x), axis=0)
    else:
        logs = tl.sum(tl.sum(log2(x), axis=2), axis=0)
    logs = tl.sum(logs, axis=2)  # [OUTER_SETS, INNER_SETS, N_SETS]
    return tl.reshape(logs, (logs.shape[0] * logs.shape[1], logs.shape[2]))


@triton.jit
def sum_column_sets_of_logs(
    sums,  # [M_SETS, BLOCK_N]
    L2: tl.constexpr,
    FACTORS: tl.constexpr,
):
    """Logarithms of the sums, added up over the elements of column sets: `[M_SETS, N_SETS]`."""
    M_SETS: tl.constexpr = sums.shape[0]
    N_SETS: tl.constexpr = sums.shape[1] // L2
    if L2 >= 4 and FACTORS >= 4:
        x = product(product(tl.reshape(sums, (M_SETS, L2 // 4, 2, 2, N_SETS)), 2), 2)
    elif L2 >= 2 and FACTORS >= 2:
        x = product(tl.reshape(sums, (M_SETS, L2 // 2, 2, N_SETS)), 2)
    else:
        x = tl.reshape(sums, (M_SETS, L2, N_SETS))
    return tl.sum(log2(x), axis=1)


@triton.jit
def sum_logs(
    e,  # [BLOCK_M, BLOCK_N] exponentials, 0 at padding
    row_inside,  # [BLOCK_M]
    column_inside,  # [BLOCK_N]
    L2: tl.constexpr,
    FACTORS: tl.constexpr,
    ROW_PADDING: tl.constexpr,
    COLUMN_PADDING: tl.constexpr,
    OUTER: tl.constexpr,
    PAIR: tl.constexpr,
    LANE: tl.constexpr,
):
    """Sums of log2(row sums) and of log2(column sums) over sets: two `[M_SETS, N_SETS]`.

    FACTORS sums share a logarithm, which is why alpha bounds FACTORS (problem.FACTOR_LIMITS).
    """
    row_sums = tl.sum(by_column_set(e, L2), axis=1)
    column_sums = sum_row_sets(by_row_set(e, OUTER, PAIR, LANE))
    column_sums = tl.reshape(column_sums, (column_sums.shape[1] * column_sums.shape[3], e.shape[1]))
    if ROW_PADDING:
        row_sums = tl.where(row_inside[:, None], row_sums, 1.0)
    if COLUMN_PADDING:
        column_sums = tl.where(column_inside[None, :], column_sums, 1.0)
    row_logs = sum_row_sets_of_logs(row_sums, FACTORS, OUTER, PAIR, LANE)
    return row_logs, sum_column_sets_of_logs(column_sums, L2, FACTORS)


@triton.jit
def sum_shifted_logs(
    x,  # [BLOCK_M, BLOCK_N] exponents, MASKED at padding
    row_inside,  # [BLOCK_M]
    column_inside,  # [BLOCK_N]
    L2: tl.constexpr,
    ROW_PADDING: tl.constexpr,
    COLUMN_PADDING: tl.constexpr,
    OUTER: tl.constexpr,
    PAIR: tl.constexpr,
    LANE: tl.constexpr,
):
    """The same for any alpha: exponents minus the maximum of their row, then of their column."""
    by_column = by_column_set(x, L2)
    top = tl.max(by_column, axis=1, keep_dims=True)
    row_logs = log2(tl.sum(tl.exp2(by_column - top), axis=1, keep_dims=True)) + top
    row_logs = tl.reshape(row_logs, (x.shape[0], x.shape[1] // L2))
    if ROW_PADDING:
        row_logs = tl.where(row_inside[:, None], row_logs, 0.0)
    row_logs = sum_row_sets(by_row_set(row_logs, OUTER, PAIR, LANE))

    by_row = by_row_set(x, OUTER, PAIR, LANE)
    top = max_row_sets(by_row)
    column_logs = log2(sum_row_sets(tl.exp2(by_row - top))) + top
    M_SETS: tl.constexpr = column_logs.shape[1] * column_logs.shape[3]
    column_logs = tl.reshape(column_logs, (M_SETS, x.shape[1]))
    if COLUMN_PADDING:
        column_logs = tl.where(column_inside[None, :], column_logs, 0.0)
    column_logs = tl.sum(by_column_set(column_logs, L2), axis=1)
    return tl.reshape(row_logs, column_logs.shape), column_logs


@triton.jit
def reduce_smooth_chamfer(
    cosines,  # [BLOCK_M, BLOCK_N]
    row_inside,  # [BLOCK_M]
    column_inside,  # [BLOCK_N]
    row_sizes,  # [M_SETS] float32
    column_sizes,  # [N_SETS] float32
    alpha,
    L2: tl.constexpr,
    FACTORS: tl.constexpr,  # sums that may share one logarithm; 0: shift by the maxima
    LOG_MEAN: tl.constexpr,
    ROW_PADDING: tl.constexpr,
    COLUMN_PADDING: tl.constexpr,
    POLYNOMIAL: tl.constexpr,  # one element in so many takes exp2 without special functions; or 0
    OUTER: tl.constexpr,
    PAIR: tl.constexpr,
    LANE: tl.constexpr,
):
    """Scores `[M_SETS, N_SETS]` of the pairs of sets of a tile."""
    x = cosines * (alpha * LOG2_E)
    if ROW_PADDING or COLUMN_PADDING:
        x = tl.where(row_inside[:, None] & column_inside[None, :], x, MASKED)
    if FACTORS > 0:
        e = tl.exp2(x)
        if POLYNOMIAL > 0 and not (ROW_PADDING or COLUMN_PADDING):
            # Special functions are the bottleneck, so a share of the elements does without. Which
            # ones is known for each register: the compiler drops the value that is not taken.
            ordinary = tl.arange(0, x.shape[1]) // (x.shape[1] // L2) < L2 // POLYNOMIAL
            e = tl.where(ordinary[None, :], exp2_by_polynomial(x), e)
        row_logs, column_logs = sum_logs(
            e,
            row_inside,
            column_inside,
            L2,
            FACTORS,
            ROW_PADDING,
            COLUMN_PADDING,
            OUTER,
            PAIR,
            LANE,
        )
    else:
        row_logs, column_logs = sum_shifted_logs(
            x, row_inside, column_inside, L2, ROW_PADDING, COLUMN_PADDING, OUTER, PAIR, LANE
        )
    scores = row_logs / row_sizes[:, None] + column_logs / column_sizes[None, :]
    if LOG_MEAN:
        scores -= tl.log2(row_sizes)[:, None] + tl.log2(column_sizes)[None, :]
    return scores * (0.5 * LN_2 / alpha)


@triton.jit
def reduce_cosines(
    cosines,  # [BLOCK_M, BLOCK_N]
    row_inside,  # [BLOCK_M]
    column_inside,  # [BLOCK_N]
    row_sizes,  # [M_SETS] float32
    column_sizes,  # [N_SETS] float32
    alpha,
    K: tl.constexpr,
    L: tl.constexpr,
    K2: tl.constexpr,
    L2: tl.constexpr,
    FACTORS: tl.constexpr,
    LOG_MEAN: tl.constexpr,
    ROW_RAGGED: tl.constexpr,
    COLUMN_RAGGED: tl.constexpr,
    POLYNOMIAL: tl.constexpr,
    OUTER: tl.constexpr,
    PAIR: tl.constexpr,
    LANE: tl.constexpr,
    SIMILARITY: tl.constexpr,  # a name in problem.SIMILARITIES
    QUERY_ROWS: tl.constexpr,  # whether the row sets are the queries, where that matters
):
    """Scores `[M_SETS, N_SETS]` of the pairs of sets of a tile."""
    ROW_PADDING: tl.constexpr = ROW_RAGGED or K2 > K
    COLUMN_PADDING: tl.constexpr = COLUMN_RAGGED or L2 > L
    if SIMILARITY == "smooth_chamfer":
        return reduce_smooth_chamfer(
            cosines,
            row_inside,
            column_inside,
            row_sizes,
            column_sizes,
            alpha,
            L2,
            FACTORS,
            LOG_MEAN,
            ROW_PADDING,
            COLUMN_PADDING,
            POLYNOMIAL,
            OUTER,
            PAIR,
            LANE,
        )
    else:
        return reduce_maxima(
            cosines,
            row_inside,
            column_inside,
            row_sizes,
            column_sizes,
            L2,
            ROW_PADDING,
            COLUMN_PADDING,
            OUTER,
            PAIR,
            LANE,
            SIMILARITY,
            QUERY_ROWS,
        )
