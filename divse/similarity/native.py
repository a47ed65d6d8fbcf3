"""Autograd and conversion around the C++ kernels of ``divse_native``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from divse.similarity import blocked
from divse.similarity.inputs import Sets
from divse.similarity.table import Similarity

_OPERATIONS = frozenset({"scores", "search", "hardest_negatives"})


def why_not(operation: str, queries: Sets, gallery: Sets, similarity: Similarity) -> str | None:
    """Return why the C++ kernels cannot serve a call, or None if they can."""
    if "native" not in similarity.fused:
        return f"it has no kernel for {similarity.name}"
    if operation not in _OPERATIONS:
        return f"it has no kernel for {operation}"
    try:
        import divse_native  # noqa: F401
    except ImportError as error:
        return f"the compiled module divse_native is not installed ({error})"
    for sets, name in ((queries, "queries"), (gallery, "gallery")):
        if sets.values.device.type != "cpu":
            return f"it runs on the CPU and the {name} are on {sets.values.device}"
        if sets.values.dtype == torch.float64:
            return f"it computes in float32 and the {name} are float64"
    return None


def _host(values: Tensor, keep_half: bool) -> Any:
    values = values.detach()
    if not (keep_half and values.dtype == torch.float16):
        values = values.float()
    return values.numpy()


def _arguments(queries: Sets, gallery: Sets, log_mean: bool) -> dict[str, Any]:
    def host(lengths: Tensor | None) -> Any:
        return None if lengths is None else lengths.numpy()

    return {
        "log_mean": log_mean,
        "query_lengths": host(queries.lengths),
        "gallery_lengths": host(gallery.lengths),
        "threads": torch.get_num_threads(),
    }


class _SmoothChamfer(torch.autograd.Function):
    """Scores (B, N) forward; the exponentials are computed again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        gallery: Tensor,
        alpha: float | Tensor,
        query_lengths: Tensor | None,
        gallery_lengths: Tensor | None,
        log_mean: bool,
    ) -> Tensor:
        import divse_native

        ctx.save_for_backward(queries, gallery)
        ctx.alpha = alpha
        ctx.arguments = _arguments(
            Sets(queries, query_lengths), Sets(gallery, gallery_lengths), log_mean
        )
        scores = divse_native.scores(
            _host(queries, False), _host(gallery, True), alpha=float(alpha), **ctx.arguments
        )
        return torch.from_numpy(scores)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        import divse_native

        if torch.is_grad_enabled():  # create_graph=True
            raise RuntimeError(
                "the C++ kernels have no second gradients: call score(..., impl='reference')"
            )
        queries, gallery = ctx.saved_tensors
        grad_queries, grad_gallery, grad_alpha = divse_native.backward(
            _host(queries, False),
            _host(gallery, False),
            grads[0].float().contiguous().numpy(),
            alpha=float(ctx.alpha),
            **ctx.arguments,
        )
        alpha = None
        if isinstance(ctx.alpha, Tensor):
            alpha = torch.tensor(grad_alpha, dtype=ctx.alpha.dtype)
        return (
            torch.from_numpy(grad_queries).to(queries.dtype),
            torch.from_numpy(grad_gallery).to(gallery.dtype),
            alpha,
            None,
            None,
            None,
        )


def scores(
    queries: Sets, gallery: Sets, similarity: Similarity, parameters: dict[str, Any]
) -> Tensor:
    """Scores (B, N) fp32; differentiable."""
    alpha, log_mean = parameters["alpha"], parameters["log_mean"]
    result: Tensor = _SmoothChamfer.apply(
        queries.values, gallery.values, alpha, queries.lengths, gallery.lengths, log_mean
    )
    return result


def search(
    queries: Sets,
    gallery: Sets,
    topk: int,
    similarity: Similarity,
    parameters: dict[str, Any],
    excluded: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The best ``topk`` scores and positions (B, topk) of one pass that stores no B x N scores."""
    import divse_native

    if excluded is not None:
        return blocked.search(scores, queries, gallery, topk, similarity, parameters, excluded)
    best, ids = divse_native.search(
        _host(queries.values, False),
        _host(gallery.values, True),
        topk,
        alpha=float(parameters["alpha"]),
        **_arguments(queries, gallery, parameters["log_mean"]),
    )
    return torch.from_numpy(best), torch.from_numpy(ids)


def hardest_negatives(
    queries: Sets,
    gallery: Sets,
    query_groups: Tensor,
    gallery_groups: Tensor,
    topn: int,
    similarity: Similarity,
    parameters: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """Positions of the best sets of another group: (B, topn) in the gallery, (N, topn) back."""
    return blocked.hardest_negatives(
        scores, queries, gallery, query_groups, gallery_groups, topn, similarity, parameters
    )
