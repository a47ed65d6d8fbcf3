"""The scores that the CUDA C++ kernel for Hopper serves (csrc/cuda), on CUDA tensors."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from divse.similarity.inputs import Sets
from divse.similarity.table import Similarity


def why_not(
    operation: str,
    queries: Sets,
    gallery: Sets,
    similarity: Similarity,
    parameters: dict[str, Any] | None = None,
) -> str | None:
    """Return why the CUDA kernel cannot serve a call, or None if it can.

    Without ``parameters`` their defaults are meant.
    """
    if operation != "scores" or "cuda" not in similarity.fused:
        return f"it has no kernel for {operation} by {similarity.name}"
    try:
        from divse_kernels import hopper
    except ImportError as error:
        return f"Triton, which serves its gradients, is not installed ({error})"
    reason: str | None = hopper.why_not(
        queries.values[:0],
        gallery.values[:0],
        (parameters or {}).get("alpha", 16.0),
        ragged=queries.lengths is not None or gallery.lengths is not None,
    )
    return reason


def why_not_unasked(
    queries: Sets, gallery: Sets, parameters: dict[str, Any] | None = None
) -> str | None:
    """Return why ``impl="auto"`` takes the Triton kernel for sets that this one could serve."""
    from divse_kernels import hopper

    if hopper.faster(queries.values, gallery.values, float((parameters or {}).get("alpha", 16.0))):
        return None
    return "it was not measured to be faster here: python -m divse_kernels.autotune measures"


def scores(
    queries: Sets, gallery: Sets, similarity: Similarity, parameters: dict[str, Any]
) -> Tensor:
    """Scores (B, N); differentiable."""
    from divse_kernels import hopper

    result: Tensor = hopper.smooth_chamfer(queries.values, gallery.values, **parameters)
    return result
