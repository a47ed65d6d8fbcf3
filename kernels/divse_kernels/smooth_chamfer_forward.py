"""All-pairs Smooth-Chamfer scores in one pass over the tiles of the cosine matrix.

For row sets of K elements and column sets of L elements, with c = cosines of a pair of sets:

    rows, columns = logsumexp(alpha * c, over L), logsumexp(alpha * c, over K)
    scores = (mean(rows, over K) + mean(columns, over L)) / (2 * alpha)

Scores are symmetric in the two sides, so the caller may lay either one along the rows. The
cosines of a tile live in registers: memory holds the two inputs and the scores.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from divse_kernels.launch import Side, launches, on_device, problem
from divse_kernels.problem import Problem, padded
from divse_kernels.tiles import (
    LN_2,
    LOG2_E,
    MASKED,
    by_column_set,
    by_row_set,
    cosine_tile,
    element_offsets,
    exp2_by_polynomial,
    log2,
    max_row_sets,
    product,
    row_order,
    set_lengths,
    sum_row_sets,
)
from divse_kernels.tuning import Tile, forward_tile


@triton.jit
def tile_of_program(M_TILES, N_TILES, GROUP: tl.constexpr):
    """Row and column of this program's tile; GROUP rows of tiles share columns in the L2 cache."""
    pid = tl.program_id(0)
    group = pid // (GROUP * N_TILES)
    rows = min(M_TILES - group * GROUP, GROUP)
    within = pid % (GROUP * N_TILES)
    return group * GROUP + within % rows, within // rows


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
def smooth_chamfer_forward(
    row_ptr,  # [ROW_SETS, K, D]
    column_ptr,  # [COLUMN_SETS, L, D]
    score_ptr,  # [ROW_SETS, COLUMN_SETS] float32
    row_lengths_ptr,  # [ROW_SETS] int64, or None
    column_lengths_ptr,  # [COLUMN_SETS] int64, or None
    alpha,  # float, or a pointer to one
    D,
    ROW_SETS,
    COLUMN_SETS,
    stride_row_set,  # strides of the inputs in units of 8 values
    stride_row_element,
    stride_column_set,
    stride_column_element,
    stride_score_row,
    stride_score_column,
    K: tl.constexpr,
    L: tl.constexpr,
    K2: tl.constexpr,
    L2: tl.constexpr,
    FACTORS: tl.constexpr,  # sums that may share one logarithm; 0: shift by the maxima
    LOG_MEAN: tl.constexpr,
    ROW_RAGGED: tl.constexpr,
    COLUMN_RAGGED: tl.constexpr,
    ALPHA_ON_DEVICE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EVEN_D: tl.constexpr,  # BLOCK_D divides D
    GROUP: tl.constexpr,
    POLYNOMIAL: tl.constexpr,  # one element in so many takes exp2 without special functions; or 0
    OUTER: tl.constexpr,
    PAIR: tl.constexpr,
    LANE: tl.constexpr,
):
    """One tile of scores, `[M_SETS, N_SETS]`."""
    M_SETS: tl.constexpr = BLOCK_M // K2
    N_SETS: tl.constexpr = BLOCK_N // L2
    ROW_PADDING: tl.constexpr = ROW_RAGGED or K2 > K
    COLUMN_PADDING: tl.constexpr = COLUMN_RAGGED or L2 > L
    if ALPHA_ON_DEVICE:
        alpha = tl.load(alpha).to(tl.float32)
    tile_m, tile_n = tile_of_program(tl.cdiv(ROW_SETS, M_SETS), tl.cdiv(COLUMN_SETS, N_SETS), GROUP)

    # Indices past an end are clamped: every load is in bounds, and what it gives is never stored.
    row_set, row_element = row_order(BLOCK_M, OUTER, PAIR, LANE)
    row_set = tl.minimum(tile_m * M_SETS + row_set, ROW_SETS - 1)
    n = tl.arange(0, BLOCK_N)
    column_set = tl.minimum(tile_n * N_SETS + n % N_SETS, COLUMN_SETS - 1)
    column_element = n // N_SETS
    x = cosine_tile(
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
    x = x * (alpha * LOG2_E)

    row_inside = row_element < set_lengths(row_lengths_ptr, row_set, K, ROW_RAGGED)
    column_inside = column_element < set_lengths(column_lengths_ptr, column_set, L, COLUMN_RAGGED)
    if ROW_PADDING or COLUMN_PADDING:
        x = tl.where(row_inside[:, None] & column_inside[None, :], x, MASKED)

    if FACTORS > 0:
        e = tl.exp2(x)
        if POLYNOMIAL > 0 and not (ROW_PADDING or COLUMN_PADDING):
            # Special functions are the bottleneck, so a share of the elements does without. Which
            # ones is known for each register: the compiler drops the value that is not taken.
            ordinary = column_element < L2 // POLYNOMIAL
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

    m = tile_m * M_SETS + tl.arange(0, M_SETS)
    n = tile_n * N_SETS + tl.arange(0, N_SETS)
    m_size = set_lengths(row_lengths_ptr, tl.minimum(m, ROW_SETS - 1), K, ROW_RAGGED)
    n_size = set_lengths(column_lengths_ptr, tl.minimum(n, COLUMN_SETS - 1), L, COLUMN_RAGGED)
    m_size = m_size.to(tl.float32)[:, None]
    n_size = n_size.to(tl.float32)[None, :]
    scores = row_logs / m_size + column_logs / n_size
    if LOG_MEAN:
        scores -= tl.log2(m_size) + tl.log2(n_size)
    scores *= 0.5 * LN_2 / alpha
    offsets = (
        m.to(tl.int64)[:, None] * stride_score_row + n.to(tl.int64)[None, :] * stride_score_column
    )
    tl.store(score_ptr + offsets, scores, mask=(m < ROW_SETS)[:, None] & (n < COLUMN_SETS)[None, :])


def constants(task: Problem, tile: Tile, log_mean: bool) -> dict[str, int | bool]:
    """Compile-time arguments of the kernel."""
    return {
        **task.constants,
        **tile.constants,
        **tile.row_order(padded(task.row_size)),
        "FACTORS": task.factors,
        "LOG_MEAN": log_mean,
        "EVEN_D": task.dims % tile.block_d == 0,
        "GROUP": 8,
        "POLYNOMIAL": tile.polynomial,
    }


def scores(queries: Side, gallery: Side, alpha: float | Tensor, log_mean: bool) -> Tensor:
    """Launch the kernel: (B, N) float32 scores of B query sets and N gallery sets."""
    device = queries.values.device
    out = torch.empty(queries.count, gallery.count, dtype=torch.float32, device=device)
    if out.numel() == 0:
        return out
    # Tiles are tall, so the larger side goes along the rows.
    task, strides = problem(queries, gallery, alpha), out.stride()
    rows, columns = queries, gallery
    if task.rows < task.columns:
        rows, columns, strides = gallery, queries, strides[::-1]
        task = problem(rows, columns, alpha)
    tile = forward_tile(task)
    programs = triton.cdiv(task.rows, tile.block_m) * triton.cdiv(task.columns, tile.block_n)
    launches["smooth_chamfer_forward"] += 1
    with on_device(device):
        smooth_chamfer_forward[(programs,)](
            rows.values,
            columns.values,
            out,
            rows.lengths,
            columns.lengths,
            alpha,
            task.dims,
            task.row_sets,
            task.column_sets,
            *rows.strides,
            *columns.strides,
            *strides,
            **constants(task, tile, log_mean),
            **tile.options,
        )
    return out
