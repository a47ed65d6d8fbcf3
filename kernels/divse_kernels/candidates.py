"""Scores of each query with gallery sets of its own, which are gathered as they are multiplied.

A program takes one query and a block of its candidates. Gathered elements lie along the rows, each
read once, a whole row of BLOCK_D values at a time; the few elements of the query lie along the
columns, repeated until they fill the 16 that a product on tensor cores has.
"""

import dataclasses

import torch
import triton
import triton.language as tl
from torch import Tensor

from divse_kernels import score_tile
from divse_kernels.launch import Side, launches, on_device, problem
from divse_kernels.problem import SMOOTH_CHAMFER, Problem, padded
from divse_kernels.score_tile import tile_scores
from divse_kernels.tuning import Tile, candidates_tile


@triton.jit
def score_candidates(
    gallery_ptr,  # [N, K, D]
    query_ptr,  # [B, L, D]
    candidate_ptr,  # [B, M] int64, -1: none
    score_ptr,  # [B, M] float32
    gallery_lengths_ptr,  # [N] int64, or None
    query_lengths_ptr,  # [B] int64, or None
    alpha,  # float, or a pointer to one
    D,
    M,
    stride_gallery_set,  # strides of the inputs in units of 8 values
    stride_gallery_element,
    stride_query_set,
    stride_query_element,
    K: tl.constexpr,  # of a gallery set, which lies along the rows
    L: tl.constexpr,  # of a query
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
    """Scores `[M_SETS]` of one query with one block of its candidates."""
    M_SETS: tl.constexpr = BLOCK_M // K2
    blocks = tl.cdiv(M, M_SETS)
    query = tl.program_id(0) // blocks
    first = tl.program_id(0) % blocks * M_SETS
    own = query.to(tl.int64) * M
    scores = tile_scores(
        gallery_ptr,
        candidate_ptr + own,
        gallery_lengths_ptr,
        first,
        M,
        stride_gallery_set,
        stride_gallery_element,
        query_ptr,
        None,
        query_lengths_ptr,
        query,
        query + 1,  # as if it were the last: all column sets are this query
        stride_query_set,
        stride_query_element,
        alpha,
        D,
        K,
        L,
        K2,
        L2,
        FACTORS,
        LOG_MEAN,
        ROW_RAGGED,
        COLUMN_RAGGED,
        ALPHA_ON_DEVICE,
        BLOCK_M,
        BLOCK_N,
        BLOCK_D,
        EVEN_D,
        POLYNOMIAL,
        OUTER,
        PAIR,
        LANE,
        SIMILARITY,
        QUERY_ROWS,
    )
    m = first + tl.arange(0, M_SETS)
    candidates = tl.load(candidate_ptr + own + m, mask=m < M, other=-1)
    scores = tl.where(candidates >= 0, tl.max(scores, axis=1), float("-inf"))  # of equals
    tl.store(score_ptr + own + m, scores, mask=m < M)


def scores(
    queries: Side,
    gallery: Side,
    candidates: Tensor,
    alpha: float | Tensor,
    log_mean: bool,
    similarity: str = SMOOTH_CHAMFER,
) -> Tensor:
    """Launch the kernel: (B, M) float32 scores of the candidates, -inf where there is none.

    `candidates` (B, M) int64 are positions in the gallery, from -1 to N - 1.
    """
    count = candidates.shape[1]
    out = torch.empty(candidates.shape, dtype=torch.float32, device=queries.values.device)
    if out.numel() == 0 or gallery.count == 0:
        return out.fill_(-torch.inf)
    candidates = candidates.contiguous()
    task = problem(gallery, queries, alpha, similarity, query_rows=False)
    task = dataclasses.replace(task, row_sets=out.numel(), column_sets=1)
    tile = candidates_tile(task)
    blocks = triton.cdiv(count, tile.block_m // padded(task.row_size))
    launches["score_candidates"] += 1
    with on_device(out.device):
        score_candidates[(queries.count * blocks,)](
            gallery.values,
            queries.values,
            candidates,
            out,
            gallery.lengths,
            queries.lengths,
            alpha,
            task.dims,
            count,
            *gallery.strides,
            *queries.strides,
            **constants(task, tile, log_mean),
            **tile.options,
        )
    return out


def constants(task: Problem, tile: Tile, log_mean: bool) -> dict[str, int | bool | str]:
    """Compile-time arguments of the kernel."""
    return score_tile.constants(task, tile, log_mean)
