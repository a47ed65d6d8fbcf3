"""Gradient of all-pairs Smooth-Chamfer scores for one side, the cosines computed again.

With E = exp(alpha * c), r its row sums and s its column sums inside one pair of sets,

    d score / d c_ij = weight_ij = E_ij * (1 / (2 K r_i) + 1 / (2 L s_j))

where alpha cancels. The expression is symmetric, so the gradient for the other side is the same
kernel with rows and columns exchanged.

A program owns a tile of the gradient, BLOCK_M elements x BLOCK_O dimensions, and adds to it
while it walks over the columns: nothing of size (ROW_SETS K) x (COLUMN_SETS L) is ever stored,
and no two programs add to one place, so the result does not depend on their order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from divse_kernels.launch import INTERPRETED, Side, launches, on_device, problem
from divse_kernels.problem import SHIFTED, Problem, padded
from divse_kernels.tiles import (
    LOG2_E,
    MASKED,
    bound,
    by_column_set,
    by_row_set,
    cosine_tile,
    dot,
    element_offsets,
    max_row_sets,
    reciprocal,
    row_order,
    set_lengths,
    sum_row_sets,
)
from divse_kernels.tuning import PROCESSORS, Tile, backward_tile


@triton.jit
def softmax_weights(
    x,  # [BLOCK_M, BLOCK_N] alpha * log2(e) * cosines
    row_share,  # [BLOCK_M, 1, 1] = 1 / (2 K)
    column_share,  # [1, BLOCK_N] = 1 / (2 L)
    L2: tl.constexpr,
    SHIFT: tl.constexpr,
    PADDING: tl.constexpr,
    OUTER: tl.constexpr,
    PAIR: tl.constexpr,
    LANE: tl.constexpr,
):
    """d score / d cosine of every pair of elements, `[BLOCK_M, L2, N_SETS]`."""
    if SHIFT:
        by_column = by_column_set(x, L2)
        rows = tl.exp2(by_column - tl.max(by_column, axis=1, keep_dims=True))
        by_row = by_row_set(x, OUTER, PAIR, LANE)
        columns = tl.exp2(by_row - max_row_sets(by_row))
    else:
        e = tl.exp2(x)
        rows = by_column_set(e, L2)
        columns = by_row_set(e, OUTER, PAIR, LANE)
    row_sums = tl.sum(rows, axis=1, keep_dims=True)
    column_sums = sum_row_sets(columns)
    if PADDING:  # sums of nothing but padding
        row_sums = tl.where(row_sums == 0.0, 1.0, row_sums)
        column_sums = tl.where(column_sums == 0.0, 1.0, column_sums)
    row_factors = row_share * reciprocal(row_sums)
    column_share = tl.reshape(column_share, (1, 1, 1, 1, 1, x.shape[1]))
    column_factors = column_share * reciprocal(column_sums)
    columns = tl.reshape(columns * column_factors, x.shape)
    return rows * row_factors + by_column_set(columns, L2)


@triton.jit
def add_weighted(weights, values, acc):
    """acc + weights @ values, with the weights as two half-precision terms where values are half.

    One term would cost the gradient its last 13 to 16 bits.
    """
    if values.dtype == tl.float32:
        return dot(weights, values, acc)
    else:
        high = weights.to(values.dtype)
        low = (weights - high.to(tl.float32)).to(values.dtype)
        return dot(low, values, dot(high, values, acc))


@triton.jit
def smooth_chamfer_backward(
    row_ptr,  # [ROW_SETS, K, D]
    column_ptr,  # [COLUMN_SETS, L, D]
    grad_score_ptr,  # [ROW_SETS, COLUMN_SETS] float32
    grad_scale_ptr,  # [] float32, divides grad_score, whose exponents float16 may not have; or None
    grad_row_ptr,  # [SPLITS, ROW_SETS, K, D] contiguous
    moment_ptr,  # [SPLITS, M_TILES] float32: sums of grad_score * weight * exponent; or None
    row_lengths_ptr,  # [ROW_SETS] int64, or None
    column_lengths_ptr,  # [COLUMN_SETS] int64, or None
    alpha,  # float, or a pointer to one
    D,
    ROW_SETS,
    COLUMN_SETS,
    SPLIT_TILES,  # tiles of columns that one program walks over
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
    SHIFT: tl.constexpr,
    ROW_RAGGED: tl.constexpr,
    COLUMN_RAGGED: tl.constexpr,
    ALPHA_ON_DEVICE: tl.constexpr,
    SCALED: tl.constexpr,
    MOMENT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EVEN_D: tl.constexpr,  # BLOCK_D divides D
    BLOCK_O: tl.constexpr,
    OUTER: tl.constexpr,
    PAIR: tl.constexpr,
    LANE: tl.constexpr,
):
    """One tile of the gradient for the rows, `[BLOCK_M, BLOCK_O]`."""
    M_SETS: tl.constexpr = BLOCK_M // K2
    N_SETS: tl.constexpr = BLOCK_N // L2
    PADDING: tl.constexpr = ROW_RAGGED or COLUMN_RAGGED or K2 > K or L2 > L
    if ALPHA_ON_DEVICE:
        alpha = tl.load(alpha).to(tl.float32)
    if SCALED:
        scale = tl.load(grad_scale_ptr)
        inverse_scale = 1.0 / scale
    split = tl.program_id(2)

    row_set, row_element = row_order(BLOCK_M, OUTER, PAIR, LANE)
    row_set += tl.program_id(0) * M_SETS
    row_exists = (row_set < ROW_SETS) & (row_element < K)
    row_set = tl.minimum(row_set, ROW_SETS - 1)
    row_length = set_lengths(row_lengths_ptr, row_set, K, ROW_RAGGED)
    row_offsets = element_offsets(
        row_set, tl.minimum(row_element, K - 1), stride_row_set, stride_row_element
    )
    row_share = tl.reshape(0.5 / row_length.to(tl.float32), (BLOCK_M, 1, 1))
    dims = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    n = tl.arange(0, BLOCK_N)
    n_set = tl.arange(0, N_SETS)
    grad_row_offsets = row_set.to(tl.int64)[:, None] * stride_score_row

    grad = tl.zeros((BLOCK_M, BLOCK_O), tl.float32)
    moment = tl.zeros((BLOCK_M,), tl.float32)
    start = split * SPLIT_TILES * N_SETS
    end = tl.minimum(start + SPLIT_TILES * N_SETS, COLUMN_SETS)
    for first in range(bound(start), bound(end), N_SETS):
        column_set = tl.minimum(first + n % N_SETS, COLUMN_SETS - 1)
        column_element = n // N_SETS
        column_length = set_lengths(column_lengths_ptr, column_set, L, COLUMN_RAGGED)
        column_inside = column_element < column_length
        column_offsets = element_offsets(
            column_set, tl.minimum(column_element, L - 1), stride_column_set, stride_column_element
        )
        x = cosine_tile(
            row_ptr, row_offsets, column_ptr, column_offsets, D, BLOCK_M, BLOCK_N, BLOCK_D, EVEN_D
        )
        x = x * (alpha * LOG2_E)
        if PADDING:
            inside = (row_element < row_length)[:, None] & column_inside[None, :]
            x = tl.where(inside, x, MASKED)
        column_share = (0.5 / column_length.to(tl.float32))[None, :]
        weights = softmax_weights(x, row_share, column_share, L2, SHIFT, PADDING, OUTER, PAIR, LANE)

        pair_set = first + n_set  # sets past the end have no gradient, whatever their weights
        offsets = grad_row_offsets + pair_set.to(tl.int64)[None, :] * stride_score_column
        g = tl.load(grad_score_ptr + offsets, mask=(pair_set < COLUMN_SETS)[None, :], other=0.0)
        if SCALED:
            g = g * inverse_scale
        weights = tl.reshape(weights * tl.expand_dims(g, 1), (BLOCK_M, BLOCK_N))
        if PADDING:
            weights = tl.where(inside, weights, 0.0)
        if MOMENT:
            moment += tl.sum(weights * x, axis=1)

        # Here a NaN in the padding would reach every element, so padding is not loaded.
        loaded = column_inside[:, None] & (dims < D)[None, :]
        columns = tl.load(
            column_ptr + column_offsets[:, None] + dims[None, :], mask=loaded, other=0.0
        )
        grad = add_weighted(weights, columns, grad)

    rows = (split.to(tl.int64) * ROW_SETS + row_set) * K + tl.minimum(row_element, K - 1)
    stored = row_exists[:, None] & (dims < D)[None, :]
    if SCALED:
        grad *= scale
        moment *= scale
    if MOMENT and tl.program_id(1) == 0:
        moment = tl.where(row_exists, moment, 0.0)
        tl.store(moment_ptr + split * tl.num_programs(0) + tl.program_id(0), tl.sum(moment))
    tl.store(
        grad_row_ptr + rows[:, None] * D + dims[None, :],
        grad.to(grad_row_ptr.dtype.element_ty),
        mask=stored,
    )


def constants(task: Problem, tile: Tile, scaled: bool, moment: bool) -> dict[str, int | bool]:
    """Compile-time arguments of the kernel.

    `scaled`: the gradient of the scores comes with a scale. `moment`: alpha has a gradient too.
    """
    return {
        **task.constants,
        **tile.constants,
        **tile.row_order(padded(task.row_size)),
        "BLOCK_O": tile.block_o,
        "SHIFT": task.factors == SHIFTED,
        "EVEN_D": task.dims % tile.block_d == 0,
        "SCALED": scaled,
        "MOMENT": moment,
    }


def tiles_per_split(task: Problem, tile: Tile, programs: int) -> int:
    """How many tiles of columns one program walks over: all, unless rows do not fill the device.

    Every split has a gradient of its own, so there are no more of them than columns per row: their
    memory stays within that of the columns.
    """
    tiles = triton.cdiv(task.columns, tile.block_n)
    splits = min(2 * PROCESSORS[task.arch] // programs, tiles, task.columns // task.rows)
    return triton.cdiv(tiles, max(1, splits))


def gradient(
    rows: Side, columns: Side, grad_scores: Tensor, alpha: float | Tensor, with_moment: bool
) -> tuple[Tensor, Tensor]:
    """Launch the kernel: the gradient for the rows, (count, size, D) of their type, and a moment.

    The moment is the sum over all pairs of grad_score * weight * alpha * cosine, a float64 that the
    gradient for alpha needs; 0 unless `with_moment`. `grad_scores` is (row sets, column sets), of
    any strides.
    """
    values = rows.values
    if grad_scores.numel() == 0:
        return torch.zeros_like(values), values.new_zeros((), dtype=torch.float64)
    task = problem(rows, columns, alpha)
    tile = backward_tile(task)
    grid = triton.cdiv(task.rows, tile.block_m), triton.cdiv(task.dims, tile.block_o)
    split_tiles = tiles_per_split(task, tile, grid[0] * grid[1])
    splits = triton.cdiv(task.columns, split_tiles * tile.block_n)
    final = splits == 1 and not INTERPRETED  # the interpreter truncates instead of rounding
    parts = values.new_empty(splits, *values.shape, dtype=values.dtype if final else torch.float32)
    moments = values.new_empty(splits, grid[0] if with_moment else 0, dtype=torch.float32)
    scale = None
    if values.dtype == torch.float16:
        scale = torch.linalg.vector_norm(grad_scores, torch.inf).clamp_min(1e-30)
    launches["smooth_chamfer_backward"] += 1
    with on_device(values.device):
        smooth_chamfer_backward[(*grid, splits)](
            values,
            columns.values,
            grad_scores,
            scale,
            parts,
            moments if with_moment else None,
            rows.lengths,
            columns.lengths,
            alpha,
            task.dims,
            task.row_sets,
            task.column_sets,
            split_tiles,
            *rows.strides,
            *columns.strides,
            *grad_scores.stride(),
            **constants(task, tile, scale is not None, with_moment),
            **tile.options,
        )
    grad = parts[0] if splits == 1 else parts.sum(0)
    return grad.to(values.dtype), moments.sum(dtype=torch.float64) / LOG2_E.value
