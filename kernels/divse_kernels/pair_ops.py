"""Registration with torch and the public function of scores of pairs.

divse::score_pairs       scores (P,), weights (P, K, L) and slopes (P,) of pairs of sets
divse::pairs_backward    the gradient for one side, (B, K, D) or (N, L, D)
"""

from typing import Any

import torch
from torch import Tensor

from divse_kernels import pair_gradients, pairs
from divse_kernels.launch import Side
from divse_kernels.long_pair_ops import long_pairs
from divse_kernels.long_tile import LONGEST
from divse_kernels.ops import check_sides, read_alpha
from divse_kernels.problem import MAX_SIZE, SMOOTH_CHAMFER
from divse_kernels.score_ops import kernel_name


@torch.library.custom_op("divse::score_pairs", mutates_args=())
def _scores(
    queries: Tensor,
    gallery: Tensor,
    query_ids: Tensor,
    gallery_ids: Tensor,
    alpha: float,
    alpha_tensor: Tensor | None,
    log_mean: bool,
    similarity: str,
    query_lengths: Tensor | None,
    gallery_lengths: Tensor | None,
    with_weights: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return pairs.scores(
        Side.of(queries, query_lengths),
        Side.of(gallery, gallery_lengths),
        query_ids,
        gallery_ids,
        alpha if alpha_tensor is None else alpha_tensor,
        log_mean,
        similarity,
        with_weights,
    )


@_scores.register_fake
def _(
    queries: Tensor,
    gallery: Tensor,
    query_ids: Tensor,
    gallery_ids: Tensor,
    alpha: float,
    alpha_tensor: Tensor | None,
    *more: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    count, with_weights = query_ids.shape[0], more[-1]
    shape = (count if with_weights else 0, queries.shape[1], gallery.shape[1])
    slopes = count if with_weights and alpha_tensor is not None else 0
    return tuple(queries.new_empty(s, dtype=torch.float32) for s in (count, shape, slopes))


@torch.library.custom_op("divse::pairs_backward", mutates_args=())
def _gradient(
    grad_scores: Tensor,
    weights: Tensor,
    own: Tensor,
    other: Tensor,
    own_ids: Tensor,
    other_ids: Tensor,
    other_lengths: Tensor | None,
) -> Tensor:
    return pair_gradients.gradient(
        Side.of(own, None),
        Side.of(other, other_lengths),
        own_ids,
        other_ids,
        weights,
        grad_scores.contiguous(),
    )


@_gradient.register_fake
def _(grad_scores: Tensor, weights: Tensor, own: Tensor, *_: Any) -> Tensor:
    return own.new_empty(own.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    queries, gallery, query_ids, gallery_ids, _, alpha_tensor, *_ = inputs
    _, weights, slopes = output
    ctx.mark_non_differentiable(weights, slopes)
    ctx.save_for_backward(
        queries, gallery, query_ids, gallery_ids, alpha_tensor, *inputs[8:10], weights, slopes
    )


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    """Gradients for queries, gallery and alpha, each only where it is asked for."""
    queries, gallery, query_ids, gallery_ids, alpha, *lengths, weights, slopes = ctx.saved_tensors
    grads: list[Tensor | None] = [None] * 11
    if ctx.needs_input_grad[0]:
        grads[0] = _gradient(grad, weights, queries, gallery, query_ids, gallery_ids, lengths[1])
    if ctx.needs_input_grad[1]:
        grads[1] = _gradient(grad, weights.mT, gallery, queries, gallery_ids, query_ids, lengths[0])
    if ctx.needs_input_grad[5]:
        grads[5] = (grad * slopes).sum(dtype=torch.float64).to(alpha.dtype)
    return tuple(grads)


_scores.register_autograd(_backward, setup_context=_setup_context)


def _check_ids(name: str, ids: Tensor, sets: Tensor) -> None:
    if ids.ndim != 1 or ids.device != sets.device:
        raise ValueError(
            f"{name} must be (P,) on {sets.device}, got {tuple(ids.shape)} on {ids.device}"
        )
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise TypeError(f"{name} must be integers, got {ids.dtype}")


def score_pairs(
    queries: Tensor,
    gallery: Tensor,
    query_ids: Tensor,
    gallery_ids: Tensor,
    similarity: str = SMOOTH_CHAMFER,
    *,
    alpha: float | Tensor = 16.0,
    log_mean: bool = False,
    reduction: str = "sum",
    query_lengths: Tensor | None = None,
    gallery_lengths: Tensor | None = None,
) -> Tensor:
    """Score of query set `query_ids[p]` with gallery set `gallery_ids[p]`, in plain torch:

        scores(queries, gallery)[query_ids, gallery_ids]

    but only these pairs are computed, forward and backward. Sets hold up to 1024 elements. Other
    arguments are those of `scores`.

    Arguments:
        query_ids: (P,) integers; an id that names no set, such as -1, makes the score -inf, which
            has no gradient.
        gallery_ids: (P,) likewise.

    Returns:
        (P,) float32, differentiable in queries, gallery and alpha; gradients repeat bit for bit.
    """
    check_sides(queries, gallery, query_lengths, gallery_lengths, LONGEST)
    _check_ids("query_ids", query_ids, queries)
    _check_ids("gallery_ids", gallery_ids, gallery)
    if query_ids.shape != gallery_ids.shape:
        raise ValueError(f"pairs: got {len(query_ids)} query ids and {len(gallery_ids)} others")
    if min(len(queries), len(gallery)) == 0:
        return queries.new_full(query_ids.shape, -torch.inf, dtype=torch.float32)
    number, tensor = read_alpha(alpha, queries.device)
    leaves = (queries, gallery, tensor)
    first = query_ids.to(torch.int64).clamp(0, len(queries) - 1)
    second = gallery_ids.to(torch.int64).clamp(0, len(gallery) - 1)
    name = kernel_name(similarity, reduction)
    sides = queries, gallery, first, second
    lengths = query_lengths, gallery_lengths
    if max(queries.shape[1], gallery.shape[1]) > MAX_SIZE:
        scores = long_pairs(*sides, name, number, tensor, log_mean, *lengths)
    else:
        learned = any(x is not None and x.requires_grad for x in leaves)
        scores, _, _ = _scores(
            *sides, number, tensor, log_mean, name, *lengths, torch.is_grad_enabled() and learned
        )
    return scores.masked_fill((first != query_ids) | (second != gallery_ids), -torch.inf)
