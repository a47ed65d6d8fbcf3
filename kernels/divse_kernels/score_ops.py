"""Scores by any similarity: Smooth-Chamfer's own operator, or `divse::scores` for the others.

divse::scores    scores (B, N) by a similarity that is made of maxima; no gradient
"""

from typing import Any

import torch
from torch import Tensor

from divse_kernels import smooth_chamfer_forward
from divse_kernels.launch import Side
from divse_kernels.ops import check_lengths, smooth_chamfer, supports
from divse_kernels.problem import SMOOTH_CHAMFER

NAMES = (SMOOTH_CHAMFER, "chamfer", "mil", "maxsim")
REDUCTIONS = ("sum", "mean")


@torch.library.custom_op("divse::scores", mutates_args=())
def _scores(
    queries: Tensor,
    gallery: Tensor,
    similarity: str,
    query_lengths: Tensor | None,
    gallery_lengths: Tensor | None,
) -> Tensor:
    return smooth_chamfer_forward.scores(
        Side.of(queries, query_lengths), Side.of(gallery, gallery_lengths), 1.0, False, similarity
    )


@_scores.register_fake
def _(queries: Tensor, gallery: Tensor, *_: Any) -> Tensor:
    return queries.new_empty(queries.shape[0], gallery.shape[0], dtype=torch.float32)


def kernel_name(similarity: str, reduction: str) -> str:
    """What the kernels call a similarity (`problem.SIMILARITIES`)."""
    if similarity not in NAMES:
        raise ValueError(f"similarity: got {similarity!r}, expected one of {', '.join(NAMES)}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: got {reduction!r}, expected 'sum' or 'mean'")
    mean = similarity == "maxsim" and reduction == "mean"
    return "maxsim_mean" if mean else similarity


def scores(
    queries: Tensor,
    gallery: Tensor,
    similarity: str = SMOOTH_CHAMFER,
    *,
    alpha: float | Tensor = 16.0,
    log_mean: bool = False,
    reduction: str = "sum",
    query_lengths: Tensor | None = None,
    gallery_lengths: Tensor | None = None,
) -> Tensor:
    """Score of every query set with every gallery set, in plain torch with
    `c = torch.einsum("bkd,nld->bnkl", queries, gallery)`:

        smooth_chamfer    as in `smooth_chamfer`, with alpha and log_mean
        chamfer           (c.amax(3).mean(2) + c.amax(2).mean(2)) / 2
        maxsim            c.amax(3).sum(2), or mean(2) with reduction="mean"
        mil               c.amax((2, 3))

    Other arguments are those of `smooth_chamfer`. Returns (B, N) float32; only Smooth-Chamfer is
    differentiable, the others refuse tensors that need a gradient.
    """
    name = kernel_name(similarity, reduction)
    if name == SMOOTH_CHAMFER:
        return smooth_chamfer(queries, gallery, alpha, log_mean, query_lengths, gallery_lengths)
    if not torch.compiler.is_compiling() and (reason := supports(queries, gallery)):
        raise ValueError(reason)
    if torch.is_grad_enabled() and (queries.requires_grad or gallery.requires_grad):
        raise ValueError(f"{similarity} has no gradient here: detach the sets or use no_grad")
    check_lengths("query_lengths", queries, query_lengths)
    check_lengths("gallery_lengths", gallery, gallery_lengths)
    return _scores(queries, gallery, name, query_lengths, gallery_lengths)
