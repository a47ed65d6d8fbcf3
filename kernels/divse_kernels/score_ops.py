"""Scores by any similarity: Smooth-Chamfer's own operator, or `divse::scores` for the others.

divse::scores    scores (B, N) by a similarity that is made of maxima
"""

from typing import Any

import torch
from torch import Tensor

from divse_kernels import smooth_chamfer_forward
from divse_kernels.backward_ops import scores_backward
from divse_kernels.launch import Side
from divse_kernels.long_ops import NO_PACKED_GRADIENT, long_scores, longest_packed
from divse_kernels.long_tile import LONGEST
from divse_kernels.ops import MAX_SIZE, check_lengths, read_alpha, smooth_chamfer, supports
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


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    queries, gallery, ctx.similarity, query_lengths, gallery_lengths = inputs
    ctx.save_for_backward(queries, gallery, query_lengths, gallery_lengths)


def _backward(ctx: Any, grad_scores: Tensor) -> tuple[Tensor | None, ...]:
    queries, gallery, query_lengths, gallery_lengths = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:2]
    lengths = query_lengths, gallery_lengths
    *grads, _ = scores_backward(
        grad_scores, queries, gallery, ctx.similarity, 1.0, None, *lengths, *wanted, False
    )
    return *(g if w else None for g, w in zip(grads, wanted, strict=True)), None, None, None


_scores.register_autograd(_backward, setup_context=_setup_context)


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
    gallery_offsets: Tensor | None = None,
) -> Tensor:
    """Score of every query set with every gallery set, in plain torch with
    `c = torch.einsum("bkd,nld->bnkl", queries, gallery)`:

        smooth_chamfer    as in `smooth_chamfer`, with alpha and log_mean
        chamfer           (c.amax(3).mean(2) + c.amax(2).mean(2)) / 2
        maxsim            c.amax(3).sum(2), or mean(2) with reduction="mean"
        mil               c.amax((2, 3))

    Sets hold up to 1024 elements. A gallery of sets one after the other, without padding, is
    (total, D) with `gallery_offsets` (N + 1,): set n from offsets[n] to offsets[n + 1]. Other
    arguments are those of `smooth_chamfer`. Returns (B, N) float32, differentiable (equal maxima
    share it) unless sets are packed: these refuse tensors that need a gradient.
    """
    name = kernel_name(similarity, reduction)
    sizes = (*queries.shape[1:2], *gallery.shape[1:2])
    if gallery_offsets is not None or max(sizes, default=0) > MAX_SIZE:
        lengths = query_lengths, gallery_lengths, gallery_offsets
        return _of_long_sets(queries, gallery, name, alpha, log_mean, *lengths)
    if name == SMOOTH_CHAMFER:
        return smooth_chamfer(queries, gallery, alpha, log_mean, query_lengths, gallery_lengths)
    if not torch.compiler.is_compiling() and (reason := supports(queries, gallery)):
        raise ValueError(reason)
    check_lengths("query_lengths", queries, query_lengths)
    check_lengths("gallery_lengths", gallery, gallery_lengths)
    return _scores(queries, gallery, name, query_lengths, gallery_lengths)


def _refuse_gradient(*inputs: Any) -> None:
    if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs):
        raise ValueError(NO_PACKED_GRADIENT)


def _of_long_sets(
    queries: Tensor,
    gallery: Tensor,
    similarity: str,
    alpha: float | Tensor,
    log_mean: bool,
    query_lengths: Tensor | None,
    gallery_lengths: Tensor | None,
    gallery_offsets: Tensor | None,
) -> Tensor:
    longest, sets = 0, gallery
    if gallery_offsets is not None:
        if gallery_lengths is not None:
            raise ValueError("gallery_lengths and gallery_offsets exclude each other: pass one")
        longest = longest_packed(gallery, gallery_offsets)
        sets = gallery.new_empty(0, longest, gallery.shape[1])
        _refuse_gradient(queries, gallery, alpha)
    if not torch.compiler.is_compiling() and (reason := supports(queries, sets, longest=LONGEST)):
        raise ValueError(reason)
    check_lengths("query_lengths", queries, query_lengths)
    check_lengths("gallery_lengths", gallery, gallery_lengths)
    level = read_alpha(alpha, queries.device)
    lengths = query_lengths, gallery_lengths, gallery_offsets
    return long_scores(queries, gallery, similarity, *level, log_mean, *lengths, longest)
