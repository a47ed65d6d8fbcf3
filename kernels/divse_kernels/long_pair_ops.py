"""Registration with torch of the scores of pairs of long sets.

divse::long_pairs             scores (P,) of pairs that two lists of ids name
divse::long_pairs_backward    gradients (B, K, D) and (N, L, D), and a moment that alpha's needs
"""

from typing import Any

import torch
from torch import Tensor

from divse_kernels import long_pairs as pair_gradients
from divse_kernels.backward_ops import alpha_gradient, like_sides, present
from divse_kernels.launch import Side
from divse_kernels.long_sets import Names, named_scores


@torch.library.custom_op("divse::long_pairs", mutates_args=())
def long_pairs(
    queries: Tensor,
    gallery: Tensor,
    query_ids: Tensor,
    gallery_ids: Tensor,
    similarity: str,
    alpha: float,
    alpha_tensor: Tensor | None,
    log_mean: bool,
    query_lengths: Tensor | None,
    gallery_lengths: Tensor | None,
) -> Tensor:
    """Scores (P,) float32; ids are in bounds."""
    return named_scores(
        Side.of(queries, query_lengths),
        Side.of(gallery, gallery_lengths),
        Names(query_ids.contiguous(), gallery_ids[:, None].contiguous()),
        alpha if alpha_tensor is None else alpha_tensor,
        log_mean,
        similarity,
    )[:, 0].clone()


@long_pairs.register_fake
def _(queries: Tensor, gallery: Tensor, query_ids: Tensor, *_: Any) -> Tensor:
    return queries.new_empty(query_ids.shape[0], dtype=torch.float32)


@torch.library.custom_op("divse::long_pairs_backward", mutates_args=())
def _gradients(
    grad_scores: Tensor,
    queries: Tensor,
    gallery: Tensor,
    query_ids: Tensor,
    gallery_ids: Tensor,
    similarity: str,
    alpha: float,
    alpha_tensor: Tensor | None,
    query_lengths: Tensor | None,
    gallery_lengths: Tensor | None,
    for_queries: bool,
    for_gallery: bool,
    with_moment: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    *grads, moment = pair_gradients.gradients(
        Side.of(queries, query_lengths),
        Side.of(gallery, gallery_lengths),
        query_ids.contiguous(),
        gallery_ids.contiguous(),
        grad_scores,
        alpha if alpha_tensor is None else alpha_tensor,
        similarity,
        (for_queries, for_gallery, with_moment),
    )
    return *present(tuple(grads), (queries, gallery)), moment


_gradients.register_fake(like_sides)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *sets_and_ids, ctx.similarity, ctx.alpha, alpha_tensor, _, query_lengths, gallery_lengths = (
        inputs
    )
    scores = output if ctx.needs_input_grad[6] else None
    ctx.save_for_backward(*sets_and_ids, alpha_tensor, query_lengths, gallery_lengths, scores)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients for queries, gallery and alpha, each only where it is asked for."""
    *sets_and_ids, alpha, query_lengths, gallery_lengths, scores = ctx.saved_tensors
    wanted = (*ctx.needs_input_grad[:2], ctx.needs_input_grad[6])
    how = ctx.similarity, ctx.alpha, alpha, query_lengths, gallery_lengths
    *found, moment = _gradients(grad, *sets_and_ids, *how, *wanted)
    grads: list[Tensor | None] = [None] * 10
    grads[:2] = (g if w else None for g, w in zip(found, wanted, strict=False))
    if wanted[2]:
        grads[6] = alpha_gradient(grad, scores, moment, alpha)
    return tuple(grads)


long_pairs.register_autograd(_backward, setup_context=_setup_context)
