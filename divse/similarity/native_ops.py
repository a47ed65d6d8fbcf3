"""The C++ kernels as torch operators, their fake versions and their gradients.

    divse::native_scores                (B, K, D), (N, L, D) -> scores (B, N) and, if kept, cosines
    divse::native_scores_backward       their gradients for queries, gallery and alpha
    divse::native_candidates            with positions (B, M) -> scores (B, M)
    divse::native_candidates_backward   likewise

``measure`` names the similarity; ``reduction`` is MaxSim's, ``alpha`` (a tensor of one number) and
``log_mean`` are Smooth-Chamfer's. A forward pass may keep its cosines for the backward pass, which
otherwise computes them again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Grads = tuple[Tensor, Tensor, Tensor]
Lengths = Tensor | None


def _options(
    alpha: Tensor, q_lengths: Lengths, g_lengths: Lengths, measure: str, log_mean: bool, red: str
) -> dict[str, Any]:
    return {
        "similarity": measure,
        "alpha": float(alpha),
        "log_mean": log_mean,
        "reduction": red,
        "query_lengths": None if q_lengths is None else q_lengths.numpy(),
        "gallery_lengths": None if g_lengths is None else g_lengths.numpy(),
        "threads": torch.get_num_threads(),
    }


def _floats(values: Tensor) -> Any:
    return values.detach().float().numpy()


def gallery_argument(values: Tensor) -> tuple[Any, dict[str, Any]]:
    """A gallery in its own precision, without a copy, and how to say so to divse_native."""
    values = values.detach()
    if values.dtype == torch.bfloat16:
        return values.view(torch.uint16).numpy(), {"gallery_type": "bfloat16"}
    if values.dtype == torch.float16:
        return values.numpy(), {}
    return values.float().numpy(), {}


@torch.library.custom_op("divse::native_scores", mutates_args=(), device_types="cpu")
def native_scores(
    queries: Tensor,
    gallery: Tensor,
    alpha: Tensor,
    query_lengths: Tensor | None,
    gallery_lengths: Tensor | None,
    measure: str,
    log_mean: bool,
    reduction: str,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """Scores (B, N) fp32; cosines (N L, B' K), B' the next multiple of 16, or (0, 0)."""
    import divse_native

    options = _options(alpha, query_lengths, gallery_lengths, measure, log_mean, reduction)
    if keep:
        scores, cosines = divse_native.scores_and_cosines(
            _floats(queries), _floats(gallery), **options
        )
        return torch.from_numpy(scores), torch.from_numpy(cosines)
    values, dtype = gallery_argument(gallery)
    scores = divse_native.scores(_floats(queries), values, **dtype, **options)
    return torch.from_numpy(scores), torch.empty(0, 0)


@native_scores.register_fake
def _(
    queries: Tensor,
    gallery: Tensor,
    alpha: Tensor,
    query_lengths: Tensor | None,
    gallery_lengths: Tensor | None,
    measure: str,
    log_mean: bool,
    reduction: str,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    (b, k, _), (n, size, _) = queries.shape, gallery.shape
    kept = (n * size, (b + 15) // 16 * 16 * k) if keep else (0, 0)
    scores = queries.new_empty(b, n, dtype=torch.float32)
    return scores, queries.new_empty(kept, dtype=torch.float32)


@torch.library.custom_op("divse::native_scores_backward", mutates_args=(), device_types="cpu")
def native_scores_backward(
    grads: Tensor,
    queries: Tensor,
    gallery: Tensor,
    alpha: Tensor,
    cosines: Tensor,
    query_lengths: Tensor | None,
    gallery_lengths: Tensor | None,
    measure: str,
    log_mean: bool,
    reduction: str,
) -> Grads:
    """Gradients (B, K, D), (N, L, D) and () of sum(grads * scores)."""
    import divse_native

    found = divse_native.backward(
        _floats(queries),
        _floats(gallery),
        _floats(grads),
        cosines=cosines.numpy() if cosines.numel() else None,
        **_options(alpha, query_lengths, gallery_lengths, measure, log_mean, reduction),
    )
    return _in_types_of(found, queries, gallery, alpha)


@torch.library.custom_op("divse::native_candidates", mutates_args=(), device_types="cpu")
def native_candidates(
    queries: Tensor,
    gallery: Tensor,
    candidates: Tensor,
    alpha: Tensor,
    query_lengths: Tensor | None,
    gallery_lengths: Tensor | None,
    measure: str,
    log_mean: bool,
    reduction: str,
) -> Tensor:
    """Scores (B, M) fp32 of every query with its own candidates, -inf where that is -1."""
    import divse_native

    values, dtype = gallery_argument(gallery)
    scores = divse_native.candidate_scores(
        _floats(queries),
        values,
        candidates.numpy(),
        **dtype,
        **_options(alpha, query_lengths, gallery_lengths, measure, log_mean, reduction),
    )
    return torch.from_numpy(scores)


@native_candidates.register_fake
def _(queries: Tensor, gallery: Tensor, candidates: Tensor, *_options: Any) -> Tensor:
    return queries.new_empty(candidates.shape, dtype=torch.float32)


@torch.library.custom_op("divse::native_candidates_backward", mutates_args=(), device_types="cpu")
def native_candidates_backward(
    grads: Tensor,
    queries: Tensor,
    gallery: Tensor,
    candidates: Tensor,
    alpha: Tensor,
    query_lengths: Tensor | None,
    gallery_lengths: Tensor | None,
    measure: str,
    log_mean: bool,
    reduction: str,
) -> Grads:
    """Gradients (B, K, D), (N, L, D) and () of sum(grads * scores)."""
    import divse_native

    found = divse_native.candidate_backward(
        _floats(queries),
        _floats(gallery),
        candidates.numpy(),
        _floats(grads),
        **_options(alpha, query_lengths, gallery_lengths, measure, log_mean, reduction),
    )
    return _in_types_of(found, queries, gallery, alpha)


def _in_types_of(found: tuple[Any, Any, float], *inputs: Tensor) -> Grads:
    queries, gallery, alpha = inputs
    return (
        torch.from_numpy(found[0]).to(queries.dtype),
        torch.from_numpy(found[1]).to(gallery.dtype),
        torch.tensor(found[2], dtype=alpha.dtype),
    )


@native_scores_backward.register_fake
def _(grads: Tensor, queries: Tensor, gallery: Tensor, alpha: Tensor, *_rest: Any) -> Grads:
    return _empty_like(queries, gallery, alpha)


@native_candidates_backward.register_fake
def _(
    grads: Tensor, queries: Tensor, gallery: Tensor, candidates: Tensor, alpha: Tensor, *_rest: Any
) -> Grads:
    return _empty_like(queries, gallery, alpha)


def _empty_like(queries: Tensor, gallery: Tensor, alpha: Tensor) -> Grads:
    def contiguous(like: Tensor) -> Tensor:
        return like.new_empty(like.shape)

    return contiguous(queries), contiguous(gallery), contiguous(alpha)


def _save_scores(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    queries, gallery, alpha, q_lengths, g_lengths, *ctx.options, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(queries, gallery, alpha, output[1], q_lengths, g_lengths)


def _scores_gradient(ctx: Any, grads: Tensor, _: Tensor | None) -> tuple[Any, ...]:
    found = native_scores_backward(grads, *ctx.saved_tensors, *ctx.options)
    return (*found, None, None, None, None, None, None)


def _save_candidates(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.options = inputs[6:]


def _candidates_gradient(ctx: Any, grads: Tensor) -> tuple[Any, ...]:
    found = native_candidates_backward(grads, *ctx.saved_tensors, *ctx.options)
    return (found[0], found[1], None, found[2], None, None, None, None, None)


def _no_second_gradient(ctx: Any, *grads: Any) -> None:
    raise RuntimeError(
        "the C++ kernels have no second gradients: call score(..., impl='reference')"
    )


native_scores.register_autograd(_scores_gradient, setup_context=_save_scores)
native_candidates.register_autograd(_candidates_gradient, setup_context=_save_candidates)
for _operator in (native_scores_backward, native_candidates_backward):
    _operator.register_autograd(_no_second_gradient)
