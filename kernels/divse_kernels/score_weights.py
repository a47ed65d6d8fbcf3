"""The kernel that writes weights, d loss / d cosine (weights.py), the cosines computed again.

d loss / d score of a pair comes from memory, or is made here of the score and of statistics of its
row and of its column, so that a loss that needs all pairs stores nothing of their number:

    row_lse, column_lse = logsumexp(scores / temperature, over the sets of another group)
    d loss / d score = (grad_row_lse * exp(scores / temperature - row_lse)
                        + grad_column_lse * exp(scores / temperature - column_lse)) / temperature
"""

import triton
import triton.language as tl

from divse_kernels.epilogue import reduce_cosines
from divse_kernels.score_tile import set_sizes, tile_cosines
from divse_kernels.smooth_chamfer_forward import tile_of_program
from divse_kernels.tiles import LOG2_E, row_order
from divse_kernels.weights import store_rounding, store_weights, tile_weights


@triton.jit
def log_sum_exp_gradient(
    scores,  # [M_SETS, N_SETS]
    row_lse_ptr,
    grad_row_lse_ptr,
    row_groups_ptr,
    column_lse_ptr,
    grad_column_lse_ptr,
    column_groups_ptr,
    inverse_temperature,
    m,  # [M_SETS] in bounds
    n,  # [N_SETS] in bounds
):
    """d loss / d score `[M_SETS, N_SETS]`; 0 inside a group."""
    other = tl.load(row_groups_ptr + m)[:, None] != tl.load(column_groups_ptr + n)[None, :]
    x = tl.where(other, scores * inverse_temperature, float("-inf"))
    row = tl.exp2((x - tl.load(row_lse_ptr + m)[:, None]) * LOG2_E)
    column = tl.exp2((x - tl.load(column_lse_ptr + n)[None, :]) * LOG2_E)
    g = tl.load(grad_row_lse_ptr + m)[:, None] * row
    g += tl.load(grad_column_lse_ptr + n)[None, :] * column
    return g * inverse_temperature


@triton.jit
def score_weights(
    row_ptr,  # [sets, K, D]
    column_ptr,  # [sets, L, D]
    weight_ptr,  # [ROW_SETS K, stride_weight], of the sets from first_row and first_column on
    grad_score_ptr,  # [sets, sets] float32; or None: that of the log-sum-exps
    row_lse_ptr,  # [sets] float32
    grad_row_lse_ptr,  # [sets] float32
    row_groups_ptr,  # [sets] int64
    column_lse_ptr,
    grad_column_lse_ptr,
    column_groups_ptr,
    row_lost_ptr,  # [column tiles, ROW_SETS K] float32: what rounding takes of weights; or None
    column_lost_ptr,  # [row tiles, COLUMN_SETS L]
    scale_ptr,  # [] float32, multiplies the weights; or None
    moment_ptr,  # [tiles] float32: sums of weight * exponent (less g * score's); or None
    row_lengths_ptr,  # [sets] int64, or None
    column_lengths_ptr,
    alpha,  # float, or a pointer to one
    inverse_temperature,
    D,
    first_row,
    end_row,
    first_column,
    end_column,
    stride_row_set,  # strides of the inputs in units of 8 values
    stride_row_element,
    stride_column_set,
    stride_column_element,
    stride_score_row,
    stride_score_column,
    stride_weight,
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
    GROUP: tl.constexpr,
    POLYNOMIAL: tl.constexpr,
    OUTER: tl.constexpr,
    PAIR: tl.constexpr,
    LANE: tl.constexpr,
    SIMILARITY: tl.constexpr,
    QUERY_ROWS: tl.constexpr,
):
    """One tile of weights, `[BLOCK_M, BLOCK_N]`."""
    M_SETS: tl.constexpr = BLOCK_M // K2
    N_SETS: tl.constexpr = BLOCK_N // L2
    PADDING: tl.constexpr = ROW_RAGGED or COLUMN_RAGGED or K2 > K or L2 > L
    tile_m, tile_n = tile_of_program(
        tl.cdiv(end_row - first_row, M_SETS), tl.cdiv(end_column - first_column, N_SETS), GROUP
    )
    row, column = first_row + tile_m * M_SETS, first_column + tile_n * N_SETS
    if ALPHA_ON_DEVICE:
        alpha = tl.load(alpha).to(tl.float32)
    m, n = row + tl.arange(0, M_SETS), column + tl.arange(0, N_SETS)
    exist = (m < end_row)[:, None] & (n < end_column)[None, :]
    if grad_score_ptr is not None:
        # Before the products: Triton would otherwise lay out all that follows as it is loaded.
        offsets = m.to(tl.int64)[:, None] * stride_score_row
        offsets += n.to(tl.int64)[None, :] * stride_score_column
        g = tl.load(grad_score_ptr + offsets, mask=exist, other=0.0)
    cosines, row_inside, column_inside = tile_cosines(
        row_ptr,
        None,
        row_lengths_ptr,
        row,
        end_row,
        stride_row_set,
        stride_row_element,
        column_ptr,
        None,
        column_lengths_ptr,
        column,
        end_column,
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
    row_sizes = set_sizes(None, row_lengths_ptr, m, end_row, K, ROW_RAGGED)
    column_sizes = set_sizes(None, column_lengths_ptr, n, end_column, L, COLUMN_RAGGED)
    if grad_score_ptr is None:
        scores = reduce_cosines(
            cosines,
            row_inside,
            column_inside,
            row_sizes,
            column_sizes,
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
        g = log_sum_exp_gradient(
            scores,
            row_lse_ptr,
            grad_row_lse_ptr,
            row_groups_ptr,
            column_lse_ptr,
            grad_column_lse_ptr,
            column_groups_ptr,
            inverse_temperature,
            tl.minimum(m, end_row - 1),
            tl.minimum(n, end_column - 1),
        )
        g = tl.where(exist, g, 0.0)
    if scale_ptr is not None:
        g *= tl.load(scale_ptr)
    weights = tile_weights(
        cosines,
        row_inside,
        column_inside,
        row_sizes,
        column_sizes,
        g,
        alpha,
        L2,
        FACTORS == 0,
        PADDING,
        OUTER,
        PAIR,
        LANE,
        SIMILARITY,
        QUERY_ROWS,
    )
    row_slot, row_element = row_order(BLOCK_M, OUTER, PAIR, LANE)
    row_exists = (row + row_slot < end_row) & (row_element < K)
    rows = (tile_m * M_SETS + row_slot) * K + row_element
    if row_lost_ptr is not None:
        n = tl.arange(0, BLOCK_N)
        column_slot, column_element = n % N_SETS, n // N_SETS
        store_rounding(
            weight_ptr,
            weights,
            row_lost_ptr + tile_n.to(tl.int64) * (end_row - first_row) * K,
            rows,
            row_exists,
            column_lost_ptr + tile_m.to(tl.int64) * (end_column - first_column) * L,
            (tile_n * N_SETS + column_slot) * L + column_element,
            (column + column_slot < end_column) & (column_element < L),
        )
    store_weights(
        weight_ptr,
        stride_weight,
        weights,
        rows,
        row_exists,
        tile_n * N_SETS,
        end_column - column,
        L,
        L2,
    )
    if moment_ptr is not None:
        x = cosines * alpha
        if PADDING:
            x = tl.where(row_inside[:, None] & column_inside[None, :], x, 0.0)
        column_exists = column + tl.arange(0, BLOCK_N) % N_SETS < end_column
        x = tl.where(row_exists[:, None] & column_exists[None, :], x * weights, 0.0)
        moment = tl.sum(tl.sum(x, axis=1))
        if grad_score_ptr is None:
            moment -= tl.sum(tl.sum(g * scores * alpha, axis=1))
        tl.store(moment_ptr + tl.program_id(0), moment)
