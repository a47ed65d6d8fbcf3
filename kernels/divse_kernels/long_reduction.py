"""Scores of sets that are longer than a tile, from one block of cosines after the other.

Row sets are whole (or in parts that are added up), a column set comes in blocks of BLOCK_N
elements. What is kept between blocks is little: for each row the best cosine or the sum of
exponentials so far, for each row set the sum over the columns so far.

    chamfer, maxsim, mil    x = c; rows keep their maximum; a column is finished at once
    smooth_chamfer          x = alpha * log2(e) * c; rows keep a sum of 2 ** x, or, where alpha is
                            large, their maximum and a sum of 2 ** (x - maximum)

Elements past the end of a set are its last one again: no maximum sees a difference.
"""

import triton
import triton.language as tl

from divse_kernels.max_epilogue import pairs_of_sets
from divse_kernels.tiles import LN_2, MASKED, by_row_set, log2, max_row_sets, sum_row_sets


@triton.jit
def extend_rows(x, top, total, SMOOTH: tl.constexpr, SHIFT: tl.constexpr):
    """Take a block `x` [BLOCK_M, BLOCK_N] into the rows' maxima and sums, two [BLOCK_M]."""
    if SMOOTH and SHIFT:
        higher = tl.maximum(top, tl.max(x, axis=1))
        total = total * tl.exp2(top - higher) + tl.sum(tl.exp2(x - higher[:, None]), axis=1)
        return higher, total
    elif SMOOTH:
        return top, total + tl.sum(tl.exp2(x), axis=1)
    else:
        return tl.maximum(top, tl.max(x, axis=1)), total


@triton.jit
def sum_columns(
    x,  # [BLOCK_M, BLOCK_N]
    column_inside,  # [BLOCK_N]
    SMOOTH: tl.constexpr,
    SHIFT: tl.constexpr,
    COLUMN_PADDING: tl.constexpr,
    OUTER: tl.constexpr,
    PAIR: tl.constexpr,
    LANE: tl.constexpr,
):
    """Best cosine, or logarithm of a sum, of every column; summed over the block: [M_SETS]."""
    by_row = by_row_set(x, OUTER, PAIR, LANE)
    if SMOOTH and not SHIFT:
        sums = pairs_of_sets(sum_row_sets(tl.exp2(by_row)))
        each = log2(tl.where(column_inside[None, :], sums, 1.0) if COLUMN_PADDING else sums)
    else:
        each = max_row_sets(by_row)
        if SMOOTH:
            each += log2(sum_row_sets(tl.exp2(by_row - each)))
        each = pairs_of_sets(each)
        if COLUMN_PADDING:
            each = tl.where(column_inside[None, :], each, 0.0)
    return tl.sum(each, axis=1)


@triton.jit
def over_sets(
    x,  # [BLOCK_M]
    MAXIMUM: tl.constexpr,
    OUTER: tl.constexpr,
    PAIR: tl.constexpr,
    LANE: tl.constexpr,
):
    """Sum or maximum of the rows of each row set: [M_SETS]."""
    if x.shape[0] == 16 * OUTER and PAIR * LANE == 16:  # one set: Triton has no views to lay out
        return (tl.max(x, axis=0) if MAXIMUM else tl.sum(x, axis=0)) + tl.zeros((1,), tl.float32)
    else:
        by_row = by_row_set(x[:, None], OUTER, PAIR, LANE)
        each = pairs_of_sets(max_row_sets(by_row) if MAXIMUM else sum_row_sets(by_row))
        return tl.reshape(each, (each.shape[0],))


@triton.jit
def finish_rows(
    top,  # [BLOCK_M]
    total,  # [BLOCK_M]
    row_inside,  # [BLOCK_M]
    shift,  # subtracted from every logarithm
    SIMILARITY: tl.constexpr,
    SHIFT: tl.constexpr,
    OUTER: tl.constexpr,
    PAIR: tl.constexpr,
    LANE: tl.constexpr,
):
    """Sum (of `mil`: maximum) over the elements of row sets: [M_SETS]."""
    if SIMILARITY == "mil":
        return over_sets(tl.where(row_inside, top, MASKED), True, OUTER, PAIR, LANE)
    else:
        each = top
        if SIMILARITY == "smooth_chamfer":
            each = log2(tl.where(row_inside, total, 1.0)) - shift
            if SHIFT:
                each += top
        return over_sets(tl.where(row_inside, each, 0.0), False, OUTER, PAIR, LANE)


@triton.jit
def weigh(sums, sizes, alpha, SIMILARITY: tl.constexpr):
    """A side's share of the score from its sums [M_SETS] over elements."""
    if SIMILARITY == "smooth_chamfer":
        return sums * (0.5 * LN_2 / alpha) / sizes
    elif SIMILARITY == "chamfer":
        return sums * 0.5 / sizes
    elif SIMILARITY == "maxsim_mean":
        return sums / sizes
    else:
        return sums
