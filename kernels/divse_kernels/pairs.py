"""Scores of pairs of sets that two lists of ids name, and what their gradients need.

A program gathers as many pairs as fill 16 rows of a tile and keeps the diagonal of its scores: the
products beside it are free, as the bytes of the sets are what costs. For gradients it also stores
d score / d cosine, K x L numbers a pair, so that the backward pass (pair_gradients.py) reads every
set once and multiplies no cosine again. Few pairs are scored, so exponents are always shifted by
their maxima, which any alpha allows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from divse_kernels import score_tile
from divse_kernels.epilogue import reduce_cosines
from divse_kernels.launch import Side, launches, on_device, problem
from divse_kernels.problem import SHIFTED, SMOOTH_CHAMFER, Problem
from divse_kernels.score_tile import set_sizes, tile_cosines
from divse_kernels.tiles import by_column_set, by_row_set, row_order, sum_row_sets
from divse_kernels.tuning import Tile, pairs_tile
from divse_kernels.weights import tile_weights


@triton.jit
def score_pairs(
    row_ptr,  # [B, K, D]
    column_ptr,  # [N, L, D]
    row_ids_ptr,  # [PAIRS] int64, in bounds
    column_ids_ptr,  # [PAIRS] int64, in bounds
    score_ptr,  # [PAIRS] float32
    weight_ptr,  # [PAIRS, K, L] float32: d score / d cosine; or None
    slope_ptr,  # [PAIRS] float32: d score / d alpha; or None
    row_lengths_ptr,  # [B] int64, or None
    column_lengths_ptr,  # [N] int64, or None
    alpha,  # float, or a pointer to one
    D,
    PAIRS,
    stride_row_set,  # strides of the inputs in units of 8 values
    stride_row_element,
    stride_column_set,
    stride_column_element,
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
    """Scores of SETS pairs, the diagonal of a tile of SETS x SETS."""
    SETS: tl.constexpr = BLOCK_M // K2
    PADDING: tl.constexpr = ROW_RAGGED or COLUMN_RAGGED or K2 > K or L2 > L
    first = tl.program_id(0) * SETS
    if ALPHA_ON_DEVICE:
        alpha = tl.load(alpha).to(tl.float32)
    cosines, row_inside, column_inside = tile_cosines(
        row_ptr,
        row_ids_ptr,
        row_lengths_ptr,
        first,
        PAIRS,
        stride_row_set,
        stride_row_element,
        column_ptr,
        column_ids_ptr,
        column_lengths_ptr,
        first,
        PAIRS,
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
    s = tl.arange(0, SETS)
    pairs = first + s
    own = s[:, None] == s[None, :]
    row_sizes = set_sizes(row_ids_ptr, row_lengths_ptr, pairs, PAIRS, K, ROW_RAGGED)
    column_sizes = set_sizes(column_ids_ptr, column_lengths_ptr, pairs, PAIRS, L, COLUMN_RAGGED)
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
    scores = tl.sum(tl.where(own, scores, 0.0), axis=1)
    tl.store(score_ptr + pairs, scores, mask=pairs < PAIRS)
    if weight_ptr is not None:
        weights = tile_weights(
            cosines,
            row_inside,
            column_inside,
            row_sizes,
            column_sizes,
            own.to(tl.float32),
            alpha,
            L2,
            True,
            PADDING,
            OUTER,
            PAIR,
            LANE,
            SIMILARITY,
            QUERY_ROWS,
        )
        row_slot, row_element = row_order(BLOCK_M, OUTER, PAIR, LANE)
        n = tl.arange(0, BLOCK_N)
        column_slot, column_element = n % SETS, n // SETS
        diagonal = row_slot[:, None] == column_slot[None, :]
        stored = (first + row_slot < PAIRS) & (row_element < K)
        rows = (first + row_slot).to(tl.int64) * K + row_element
        tl.store(
            weight_ptr + rows[:, None] * L + column_element[None, :],
            weights,
            mask=diagonal & stored[:, None] & (column_element < L)[None, :],
        )
        if slope_ptr is not None:
            inside = diagonal & row_inside[:, None] & column_inside[None, :]
            x = by_row_set(tl.where(inside, weights * cosines, 0.0), OUTER, PAIR, LANE)
            x = tl.reshape(sum_row_sets(x), (SETS, BLOCK_N))
            moments = tl.sum(tl.sum(by_column_set(x, L2), axis=1), axis=1)
            tl.store(slope_ptr + pairs, (moments - scores) / alpha, mask=pairs < PAIRS)


def constants(task: Problem, tile: Tile, log_mean: bool) -> dict[str, int | bool | str]:
    """Compile-time arguments of the kernel."""
    k, size = task.pair_sizes
    own = {"K2": k, "L2": size, "FACTORS": SHIFTED, **tile.row_order(k)}
    return score_tile.constants(task, tile, log_mean) | own


def scores(
    queries: Side,
    gallery: Side,
    query_ids: Tensor,
    gallery_ids: Tensor,
    alpha: float | Tensor,
    log_mean: bool,
    similarity: str = SMOOTH_CHAMFER,
    with_weights: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the kernel: scores (P,), weights (P, K, L) and slopes (P,), all float32.

    Ids (P,) are in bounds. Weights and slopes are empty unless asked for, slopes also where alpha
    is a number.
    """
    count, device = len(query_ids), queries.values.device
    with_slopes = with_weights and isinstance(alpha, Tensor)
    weights_shape = (count if with_weights else 0, queries.size, gallery.size)
    result = torch.empty(count, dtype=torch.float32, device=device)
    weights = torch.empty(weights_shape, dtype=torch.float32, device=device)
    slopes = torch.empty(count if with_slopes else 0, dtype=torch.float32, device=device)
    if count == 0:
        return result, weights, slopes
    task = problem(queries, gallery, alpha, similarity)
    tile = pairs_tile(task)
    programs = triton.cdiv(count, tile.block_m // task.pair_sizes[0])
    launches["score_pairs"] += 1
    with on_device(device):
        score_pairs[(programs,)](
            queries.values,
            gallery.values,
            query_ids,
            gallery_ids,
            result,
            weights if with_weights else None,
            slopes if with_slopes else None,
            queries.lengths,
            gallery.lengths,
            alpha,
            task.dims,
            count,
            *queries.strides,
            *gallery.strides,
            **constants(task, tile, log_mean),
            **tile.options,
        )
    return result, weights, slopes
