"""Registration with torch of the gradient of all-pairs scores, by any similarity.

divse::scores_backward    gradients (B, K, D) and (N, L, D), and a moment that alpha's needs
"""

from typing import Any

import torch
from torch import Tensor

from divse_kernels import long_backward, score_backward
from divse_kernels.launch import Side
from divse_kernels.problem import MAX_SIZE
from divse_kernels.score_backward import Loss


def empty_unless(wanted: bool, like: Tensor) -> Tensor:
    """What stands for a gradient in the results of an operator, which holds no None."""
    return like.new_empty(like.shape if wanted else 0)


def present(grads: tuple[Tensor | None, ...], like: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Gradients, empty ones for those that are not wanted."""
    return tuple(
        empty_unless(False, x) if g is None else g for g, x in zip(grads, like, strict=True)
    )


def alpha_gradient(grad_scores: Tensor, scores: Tensor, moment: Tensor, alpha: Tensor) -> Tensor:
    """The gradient for alpha: d score / d alpha = (sum of w * c - score) / alpha.

    With w = d score / d c, of which `moment` is the sum of grad * w * alpha * c over all pairs.
    """
    level = (grad_scores * scores).sum(dtype=torch.float64)
    return ((moment / alpha - level) / alpha).to(alpha.dtype)


@torch.library.custom_op("divse::scores_backward", mutates_args=())
def scores_backward(
    grad_scores: Tensor,
    queries: Tensor,
    gallery: Tensor,
    similarity: str,
    alpha: float,
    alpha_tensor: Tensor | None,
    query_lengths: Tensor | None,
    gallery_lengths: Tensor | None,
    for_queries: bool,
    for_gallery: bool,
    with_moment: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients where asked for, else empty; the moment is `score_backward.gradients`'."""
    sides = Side.of(queries, query_lengths), Side.of(gallery, gallery_lengths)
    level = alpha if alpha_tensor is None else alpha_tensor
    options = {"similarity": similarity, "wanted": (for_queries, for_gallery, with_moment)}
    if max(queries.shape[1], gallery.shape[1]) > MAX_SIZE:
        *grads, moment = long_backward.gradients(*sides, grad_scores, level, **options)
    else:
        *grads, moment = score_backward.gradients(*sides, Loss(grad_scores), level, **options)
    return *present(tuple(grads), (queries, gallery)), moment


@scores_backward.register_fake
def like_sides(
    grad_scores: Tensor, queries: Tensor, gallery: Tensor, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """What an operator whose last options say which gradients are wanted returns, without data."""
    *_, for_queries, for_gallery, _ = options
    moment = queries.new_empty((), dtype=torch.float64)
    return empty_unless(for_queries, queries), empty_unless(for_gallery, gallery), moment
