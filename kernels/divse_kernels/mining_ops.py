"""Registration with torch and the public function of the mining kernel.

divse::hardest_negatives    positions (B, topn) in the gallery and (N, topn) among the queries
"""

from typing import Any

import torch
from torch import Tensor

from divse_kernels import mining
from divse_kernels.launch import Side
from divse_kernels.ops import check_sides, read_alpha
from divse_kernels.problem import SMOOTH_CHAMFER
from divse_kernels.score_ops import kernel_name

MAX_TOPN = 32


@torch.library.custom_op("divse::hardest_negatives", mutates_args=())
def _mine(
    queries: Tensor,
    gallery: Tensor,
    query_groups: Tensor,
    gallery_groups: Tensor,
    topn: int,
    alpha: float,
    alpha_tensor: Tensor | None,
    log_mean: bool,
    similarity: str,
    query_lengths: Tensor | None,
    gallery_lengths: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return mining.mine(
        Side.of(queries, query_lengths),
        Side.of(gallery, gallery_lengths),
        query_groups,
        gallery_groups,
        topn,
        alpha if alpha_tensor is None else alpha_tensor,
        log_mean,
        similarity,
    )


@_mine.register_fake
def _(
    queries: Tensor,
    gallery: Tensor,
    query_groups: Tensor,
    gallery_groups: Tensor,
    topn: int,
    *_: Any,
) -> tuple[Tensor, Tensor]:
    return (
        query_groups.new_empty(queries.shape[0], topn),
        query_groups.new_empty(gallery.shape[0], topn),
    )


def check_groups(name: str, groups: Tensor, sets: Tensor) -> None:
    """Raise if groups are not one integer for each of the sets (count, size, D)."""
    if groups.shape != sets.shape[:1] or groups.device != sets.device:
        raise ValueError(
            f"{name} must be {tuple(sets.shape[:1])} on {sets.device}, "
            f"got {tuple(groups.shape)} on {groups.device}"
        )
    if groups.is_floating_point() or groups.dtype == torch.bool:
        raise TypeError(f"{name} must be integers, got {groups.dtype}")


def hardest_negatives(
    queries: Tensor,
    gallery: Tensor,
    query_groups: Tensor,
    gallery_groups: Tensor,
    topn: int = 1,
    alpha: float | Tensor = 16.0,
    log_mean: bool = False,
    query_lengths: Tensor | None = None,
    gallery_lengths: Tensor | None = None,
    *,
    similarity: str = SMOOTH_CHAMFER,
    reduction: str = "sum",
) -> tuple[Tensor, Tensor]:
    """The best-scoring sets of another group, both ways, in plain torch:

        s = scores(queries, gallery).masked_fill(query_groups[:, None] == gallery_groups, -inf)
        s.topk(topn, 1).indices, s.topk(topn, 0).indices.mT

    but the scores are never in memory. Other arguments are those of `scores`.

    Arguments:
        query_groups: (B,) integers; sets of one group are not each other's negatives.
        gallery_groups: (N,) likewise.
        topn: how many negatives of every set, 1 to 32.

    Returns:
        (B, topn) and (N, topn) int64, best first, ties by position, -1 where there is none (left).
        Repeats bit for bit; no gradient.
    """
    check_sides(queries, gallery, query_lengths, gallery_lengths)
    check_groups("query_groups", query_groups, queries)
    check_groups("gallery_groups", gallery_groups, gallery)
    if not 1 <= topn <= MAX_TOPN:
        raise ValueError(f"topn must be from 1 to {MAX_TOPN}, got {topn}")
    number, tensor = read_alpha(alpha, queries.device)
    result: tuple[Tensor, Tensor] = _mine(
        queries.detach(),
        gallery.detach(),
        query_groups.to(torch.int64),
        gallery_groups.to(torch.int64),
        topn,
        number,
        None if tensor is None else tensor.detach(),
        log_mean,
        kernel_name(similarity, reduction),
        query_lengths,
        gallery_lengths,
    )
    return result
