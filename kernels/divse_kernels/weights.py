"""What a tile passes on to the gradients: its weights, W = d loss / d cosine, element by element.

With g = d loss / d score of a pair of sets, E = exp(alpha * c), r its row sums and s its column
sums inside that pair, the weights of Smooth-Chamfer are

    W_ij = g * E_ij * (1 / (2 K r_i) + 1 / (2 L s_j))

where alpha cancels. Those of a maximum are g at the maximum, shared evenly where several elements
have it, as `torch.amax` has it, and 0 elsewhere.
"""

import triton
import triton.language as tl

from divse_kernels.tiles import (
    LOG2_E,
    MASKED,
    by_column_set,
    by_row_set,
    max_row_sets,
    reciprocal,
    sum_row_sets,
)


@triton.jit
def over_rows(x, PAIR: tl.constexpr, LANE: tl.constexpr):
    """View `[M_SETS, N]` so that it broadcasts over the elements in `by_row_set`."""
    INNER_SETS: tl.constexpr = 16 // (PAIR * LANE)
    return tl.reshape(x, (1, x.shape[0] // INNER_SETS, 1, INNER_SETS, 1, x.shape[1]))


@triton.jit
def times_row_share(x, share, OUTER: tl.constexpr, PAIR: tl.constexpr, LANE: tl.constexpr):
    """x `[BLOCK_M, N_SETS]` times share `[M_SETS, N_SETS]`: `[BLOCK_M, 1, N_SETS]`."""
    product = by_row_set(x, OUTER, PAIR, LANE) * over_rows(share, PAIR, LANE)
    return tl.reshape(product, (x.shape[0], 1, x.shape[1]))


@triton.jit
def times_column_share(x, share, L2: tl.constexpr, PAIR: tl.constexpr, LANE: tl.constexpr):
    """x `[1, OUTER_SETS, 1, INNER_SETS, 1, BLOCK_N]` times share `[M_SETS, N_SETS]`, as x is."""
    N_SETS: tl.constexpr = share.shape[1]
    product = tl.reshape(x, (share.shape[0], L2, N_SETS)) * tl.expand_dims(share, 1)
    return over_rows(tl.reshape(product, (share.shape[0], L2 * N_SETS)), PAIR, LANE)


@triton.jit
def smooth_chamfer_weights(
    x,  # [BLOCK_M, BLOCK_N] alpha * log2(e) * cosines, MASKED at padding
    row_share,  # [M_SETS, N_SETS] = g / (2 K)
    column_share,  # [M_SETS, N_SETS] = g / (2 L)
    L2: tl.constexpr,
    SHIFT: tl.constexpr,
    PADDING: tl.constexpr,
    OUTER: tl.constexpr,
    PAIR: tl.constexpr,
    LANE: tl.constexpr,
):
    """Weights `[BLOCK_M, L2, N_SETS]`; at padding they are 0 or a NaN of g."""
    if SHIFT:
        by_column = by_column_set(x, L2)
        rows = tl.exp2(by_column - tl.max(by_column, axis=1, keep_dims=True))
        by_row = by_row_set(x, OUTER, PAIR, LANE)
        columns = tl.exp2(by_row - max_row_sets(by_row))
    else:
        e = tl.exp2(x)
        rows = by_column_set(e, L2)
        columns = by_row_set(e, OUTER, PAIR, LANE)
    row_sums = tl.sum(rows, axis=1)
    column_sums = sum_row_sets(columns)
    if PADDING:  # sums of nothing but padding
        row_sums = tl.where(row_sums == 0.0, 1.0, row_sums)
        column_sums = tl.where(column_sums == 0.0, 1.0, column_sums)
    row_factors = times_row_share(reciprocal(row_sums), row_share, OUTER, PAIR, LANE)
    column_factors = times_column_share(reciprocal(column_sums), column_share, L2, PAIR, LANE)
    columns = tl.reshape(columns * column_factors, x.shape)
    return rows * row_factors + by_column_set(columns, L2)


@triton.jit
def row_maximum_weights(
    x, share, L2: tl.constexpr, OUTER: tl.constexpr, PAIR: tl.constexpr, LANE: tl.constexpr
):
    """share `[M_SETS, N_SETS]` at the best of each row in each column set, the rest 0."""
    by_column = by_column_set(x, L2)
    best = (by_column == tl.max(by_column, axis=1, keep_dims=True)).to(tl.float32)
    return best * times_row_share(1.0 / tl.sum(best, axis=1), share, OUTER, PAIR, LANE)


@triton.jit
def column_maximum_weights(
    x, share, L2: tl.constexpr, OUTER: tl.constexpr, PAIR: tl.constexpr, LANE: tl.constexpr
):
    """share `[M_SETS, N_SETS]` at the best of each column in each row set, the rest 0."""
    by_row = by_row_set(x, OUTER, PAIR, LANE)
    best = (by_row == max_row_sets(by_row)).to(tl.float32)
    weights = best * times_column_share(1.0 / sum_row_sets(best), share, L2, PAIR, LANE)
    return by_column_set(tl.reshape(weights, x.shape), L2)


@triton.jit
def pair_maximum_weights(
    x, share, L2: tl.constexpr, OUTER: tl.constexpr, PAIR: tl.constexpr, LANE: tl.constexpr
):
    """share `[M_SETS, N_SETS]` at the best of each pair of sets, the rest 0."""
    by_column = by_column_set(x, L2)
    top = tl.max(by_column, axis=1, keep_dims=True)
    best = (by_column == top).to(tl.float32)
    tops = by_row_set(tl.reshape(top, (x.shape[0], top.shape[2])), OUTER, PAIR, LANE)
    best_rows = (tops == max_row_sets(tops)).to(tl.float32)
    best_rows = best_rows / sum_row_sets(best_rows)
    best_rows = tl.reshape(best_rows, (x.shape[0], top.shape[2])) / tl.sum(best, axis=1)
    return best * times_row_share(best_rows, share, OUTER, PAIR, LANE)


@triton.jit
def tile_weights(
    cosines,  # [BLOCK_M, BLOCK_N]
    row_inside,  # [BLOCK_M]
    column_inside,  # [BLOCK_N]
    row_sizes,  # [M_SETS] float32
    column_sizes,  # [N_SETS] float32
    grad_scores,  # [M_SETS, N_SETS]
    alpha,
    L2: tl.constexpr,
    SHIFT: tl.constexpr,
    PADDING: tl.constexpr,
    OUTER: tl.constexpr,
    PAIR: tl.constexpr,
    LANE: tl.constexpr,
    SIMILARITY: tl.constexpr,
    QUERY_ROWS: tl.constexpr,
):
    """Weights `[BLOCK_M, BLOCK_N]` of the cosines of a tile; 0 at padding."""
    x = cosines * (alpha * LOG2_E) if SIMILARITY == "smooth_chamfer" else cosines
    if PADDING:
        inside = row_inside[:, None] & column_inside[None, :]
        x = tl.where(inside, x, MASKED)
    row_share = grad_scores / row_sizes[:, None]
    column_share = grad_scores / column_sizes[None, :]
    if SIMILARITY == "smooth_chamfer":
        weights = smooth_chamfer_weights(
            x, 0.5 * row_share, 0.5 * column_share, L2, SHIFT, PADDING, OUTER, PAIR, LANE
        )
    elif SIMILARITY == "mil":
        weights = pair_maximum_weights(x, grad_scores, L2, OUTER, PAIR, LANE)
    elif SIMILARITY == "chamfer":
        weights = row_maximum_weights(x, 0.5 * row_share, L2, OUTER, PAIR, LANE)
        weights += column_maximum_weights(x, 0.5 * column_share, L2, OUTER, PAIR, LANE)
    elif QUERY_ROWS:
        share = row_share if SIMILARITY == "maxsim_mean" else grad_scores
        weights = row_maximum_weights(x, share, L2, OUTER, PAIR, LANE)
    else:
        share = column_share if SIMILARITY == "maxsim_mean" else grad_scores
        weights = column_maximum_weights(x, share, L2, OUTER, PAIR, LANE)
    weights = tl.reshape(weights, x.shape)
    if PADDING:
        weights = tl.where(inside, weights, 0.0)
    return weights


@triton.jit
def store_rounding(
    weight_ptr,  # where the weights go: their type counts
    weights,  # [BLOCK_M, BLOCK_N], 0 where there is none
    row_ptr,  # float32, of the tile's columns
    rows,  # [BLOCK_M] where each row goes
    row_mask,
    column_ptr,  # float32, of the tile's rows
    columns,  # [BLOCK_N]
    column_mask,
):
    """Store what weights lose as they are stored, summed along the rows and along the columns."""
    lost = weights - weights.to(weight_ptr.dtype.element_ty).to(tl.float32)
    tl.store(row_ptr + rows, tl.sum(lost, axis=1), mask=row_mask)
    tl.store(column_ptr + columns, tl.sum(lost, axis=0), mask=column_mask)


@triton.jit
def store_weights(
    weight_ptr,  # [rows, stride], an element of a set beside the next
    stride,
    weights,  # [BLOCK_M, BLOCK_N], rows in any order, columns in that of the tile
    rows,  # [BLOCK_M] where each row goes
    row_mask,  # [BLOCK_M]
    first_column,  # where the first column set goes
    column_sets,  # how many column sets are left
    L: tl.constexpr,
    L2: tl.constexpr,
):
    """Store weights in the order of the elements in memory, where a row of a tile is contiguous."""
    BLOCK_N: tl.constexpr = weights.shape[1]
    weights = tl.permute(by_column_set(weights, L2), (0, 2, 1))
    weights = tl.reshape(weights, (weights.shape[0], BLOCK_N))
    n = tl.arange(0, BLOCK_N)
    column_set, element = n // L2, n % L2
    mask = row_mask[:, None] & ((column_set < column_sets) & (element < L))[None, :]
    columns = first_column * L + (n if L == L2 else column_set * L + element)
    offsets = rows.to(tl.int64)[:, None] * stride + columns[None, :]
    tl.store(weight_ptr + offsets, weights.to(weight_ptr.dtype.element_ty), mask=mask)
