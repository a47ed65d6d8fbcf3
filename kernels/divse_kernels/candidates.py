"""Scores of each query with gallery sets of its own, which are gathered as they are multiplied.

A program takes one query and a block of its candidates. Gathered elements lie along the rows, each
read once, BLOCK_D values of it at a time; the few elements of the query lie along the columns,
repeated until they fill the 16 that a product on tensor cores has.
"""

import dataclasses

import torch
import triton
import triton.language as tl
from torch import Tensor

from divse_kernels import score_tile
from divse_kernels.launch import Side, launches, on_device, problem
from divse_kernels.long_sets import Names, named_scores
from divse_kernels.long_tile import LONGEST
from divse_kernels.ops import check_lengths, read_alpha, supports
from divse_kernels.pair_ops import score_pairs
from divse_kernels.problem import MAX_SIZE, SMOOTH_CHAMFER, Problem, padded
from divse_kernels.score_ops import kernel_name
from divse_kernels.score_tile import tile_scores
from divse_kernels.tuning import Tile, candidates_tile


@triton.jit
def score_gathered(
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
    m = first + tl.arange(0, M_SETS)
    candidates = tl.load(candidate_ptr + own + m, mask=m < M, other=-1)
    scores = tl.full((M_SETS,), float("-inf"), tl.float32)
    # Blocks without candidates cost one load: of a long row, often only the beginning is filled.
    if tl.max(candidates, axis=0) >= 0:
        found = tile_scores(
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
        scores = tl.where(candidates >= 0, tl.max(found, axis=1), scores)  # columns are equal
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
    launches["score_gathered"] += 1
    with on_device(out.device):
        score_gathered[(queries.count * blocks,)](
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


def score_candidates(
    queries: Tensor,
    gallery: Tensor,
    candidates: Tensor,
    similarity: str = SMOOTH_CHAMFER,
    *,
    alpha: float | Tensor = 16.0,
    log_mean: bool = False,
    reduction: str = "sum",
    query_lengths: Tensor | None = None,
    gallery_lengths: Tensor | None = None,
) -> Tensor:
    """Score of every query set with gallery sets of its own, in plain torch:

        scores(queries, gallery, ...).gather(1, candidates)

    Arguments:
        queries: (B, K, D) of the gallery's type, or float32.
        gallery: (N, L, D) float32, float16 or bfloat16.
        candidates: (B, M) int64 on the same device, positions in the gallery; -1 for none. That
            they are below N is not checked, as looking would wait for the device.

    The others are those of `scores`; sets hold up to 1024 elements. Returns (B, M) float32, -inf
    where there is no candidate; differentiable in queries, gallery and alpha, by `score_pairs`,
    which then takes both sides in the wider type.
    """
    name = kernel_name(similarity, reduction)
    _check(queries, gallery, candidates)
    check_lengths("query_lengths", queries, query_lengths)
    check_lengths("gallery_lengths", gallery, gallery_lengths)
    inputs = (queries, gallery, alpha)
    learned = any(isinstance(x, Tensor) and x.requires_grad for x in inputs)
    if learned and torch.is_grad_enabled():
        wide = torch.promote_types(queries.dtype, gallery.dtype)
        rows = torch.arange(len(queries), device=queries.device)
        return score_pairs(
            queries.to(wide),
            gallery.to(wide),
            rows.repeat_interleave(candidates.shape[1]),
            candidates.flatten(),
            similarity,
            alpha=alpha,
            log_mean=log_mean,
            reduction=reduction,
            query_lengths=query_lengths,
            gallery_lengths=gallery_lengths,
        ).view(candidates.shape)
    number, tensor = read_alpha(alpha, queries.device)
    sides = Side.of(queries, query_lengths), Side.of(gallery, gallery_lengths)
    how = number if tensor is None else tensor, log_mean, name
    if max(queries.shape[1], gallery.shape[1]) > MAX_SIZE:
        return named_scores(*sides, Names(None, candidates.contiguous()), *how)
    return scores(*sides, candidates, *how)


def _check(queries: Tensor, gallery: Tensor, candidates: Tensor) -> None:
    if reason := supports(queries, gallery, mixed=True, longest=LONGEST):
        raise ValueError(reason)
    if candidates.dtype != torch.int64:
        raise TypeError(f"candidates must be int64, got {candidates.dtype}")
    if candidates.ndim != 2 or len(candidates) != len(queries):
        raise ValueError(
            f"candidates must be ({len(queries)}, M), one row for each query, "
            f"got {tuple(candidates.shape)}"
        )
    if candidates.device != queries.device:
        raise ValueError(f"candidates are on {candidates.device}, queries on {queries.device}")
