"""Which implementation serves a call: the named one or an error; only "auto" chooses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from divse.similarity import native
from divse.similarity.inputs import Sets
from divse.similarity.table import Similarity

#: How often each implementation really ran, by "implementation.operation"; for tests and proofs.
calls: Counter[str] = Counter()


@dataclass(frozen=True)
class Explanation:
    """The implementation that serves a call, and why each other one does not."""

    impl: str
    passed_over: dict[str, str]

    def __str__(self) -> str:
        """Return one line: the choice, then the reasons against the others."""
        others = "; ".join(f"not {name}: {why}" for name, why in self.passed_over.items())
        return self.impl + (f" ({others})" if others else "")


def reference_scores(
    queries: Sets, gallery: Sets, similarity: Similarity, parameters: dict[str, Any]
) -> Tensor:
    """Scores (B, N) by the plain torch specification."""
    q, g = queries.clean(), gallery.clean()
    wide = torch.promote_types(torch.promote_types(q.dtype, g.dtype), torch.float32)
    (b, k, d), (n, size, _) = q.shape, g.shape
    with torch.autocast(q.device.type, enabled=False):
        flat = q.reshape(-1, d).to(wide) @ g.reshape(-1, d).to(wide).mT
        cosines = flat.view(b, k, n, size).transpose(1, 2)
        rows, columns = queries.mask, gallery.mask
        return similarity.reduce(
            cosines,
            None if rows is None else rows[:, None, :],
            None if columns is None else columns[None, :, :],
            **parameters,
        )


def _triton_scores(
    queries: Sets, gallery: Sets, similarity: Similarity, parameters: dict[str, Any]
) -> Tensor:
    import divse_kernels

    q, g = _one_dtype(queries.values, gallery.values)
    result: Tensor = divse_kernels.smooth_chamfer(
        q,
        g,
        query_lengths=queries.lengths,
        gallery_lengths=gallery.lengths,
        **parameters,
    )
    return result


def _one_dtype(q: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """The tensor cores multiply operands of one type: a mixed pair goes to the wider one."""
    wide = torch.promote_types(q.dtype, g.dtype)
    return q.to(wide), g.to(wide)


def _native_scores(
    queries: Sets, gallery: Sets, similarity: Similarity, parameters: dict[str, Any]
) -> Tensor:
    return native.scores(queries, gallery, **parameters)


def _triton_why_not(queries: Sets, gallery: Sets) -> str | None:
    try:
        import divse_kernels
    except ImportError as error:
        return f"Triton is not installed ({error})"
    reason: str | None = divse_kernels.supports(*_one_dtype(queries.values, gallery.values))
    return reason


_SCORES: dict[str, Callable[[Sets, Sets, Similarity, dict[str, Any]], Tensor]] = {
    "triton": _triton_scores,
    "native": _native_scores,
    "reference": reference_scores,
}
_WHY_NOT: dict[str, Callable[[Sets, Sets], str | None]] = {
    "triton": _triton_why_not,
    "native": native.why_not,
    "reference": lambda queries, gallery: None,
}


def why_not(impl: str, queries: Sets, gallery: Sets, similarity: Similarity) -> str | None:
    """Return why ``impl`` cannot serve the call, or None if it can."""
    if impl != "reference" and impl not in similarity.fused:
        return f"it has no kernel for {similarity.name}"
    return _WHY_NOT[impl](queries, gallery)


def choose(impl: str, queries: Sets, gallery: Sets, similarity: Similarity) -> Explanation:
    """Return the implementation that serves the call.

    A named one that cannot serve raises ValueError with the reason; "auto" takes Triton on a GPU
    and the C++ kernel on a CPU, and the reference where those cannot serve.
    """
    if impl != "auto":
        if impl not in _SCORES:
            raise ValueError(f"impl: got {impl!r}, expected auto, {', '.join(_SCORES)}")
        reason = why_not(impl, queries, gallery, similarity)
        if reason is not None:
            raise ValueError(f'impl="{impl}" cannot serve this call: {reason}')
        return Explanation(impl, {})
    fused = "native" if queries.values.device.type == "cpu" else "triton"
    reason = why_not(fused, queries, gallery, similarity)
    if reason is None:
        return Explanation(fused, {})
    return Explanation("reference", {fused: reason})


def scores(
    queries: Sets, gallery: Sets, similarity: Similarity, parameters: dict[str, Any], impl: str
) -> Tensor:
    """Scores (B, N) by the chosen implementation."""
    chosen = choose(impl, queries, gallery, similarity).impl
    calls[f"{chosen}.scores"] += 1
    return _SCORES[chosen](queries, gallery, similarity, parameters)
