"""Which implementation serves a call: the named one or an error; only "auto" chooses.

An implementation is a module with one function per operation ("scores", "pairs", "candidates",
"search", "hardest_negatives") and ``why_not(operation, queries, gallery, similarity)``; that of
``cuda`` also depends on the similarity's parameters.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from divse.similarity import cuda, native, reference_backend, triton
from divse.similarity.inputs import Sets
from divse.similarity.table import Similarity

#: How often each implementation really ran, by "implementation.operation"; for tests and proofs.
calls: Counter[str] = Counter()

BACKENDS: dict[str, Any] = {
    "cuda": cuda,
    "triton": triton,
    "native": native,
    "reference": reference_backend,
}
OPERATIONS = ("scores", "pairs", "candidates", "search", "hardest_negatives")


@dataclass(frozen=True)
class Explanation:
    """The implementation that serves a call, and why each other one does not."""

    impl: str
    passed_over: dict[str, str]

    def __str__(self) -> str:
        """Return one line: the choice, then the reasons against the others."""
        others = "; ".join(f"not {name}: {why}" for name, why in self.passed_over.items())
        return self.impl + (f" ({others})" if others else "")


def choose(
    operation: str,
    impl: str,
    queries: Sets,
    gallery: Sets,
    similarity: Similarity,
    parameters: dict[str, Any] | None = None,
) -> Explanation:
    """Return the implementation that serves the call.

    A named one that cannot serve raises ValueError with the reason. "auto" takes the C++ kernel on
    a CPU; on a GPU Triton, or the CUDA kernel where that was measured to be faster; and the
    reference where those cannot serve.
    """
    if impl != "auto":
        if impl not in BACKENDS:
            raise ValueError(f"impl: got {impl!r}, expected auto, {', '.join(BACKENDS)}")
        reason = _why_not(impl, operation, queries, gallery, similarity, parameters)
        if reason is not None:
            raise ValueError(f'impl="{impl}" cannot serve this call: {reason}')
        return Explanation(impl, {})
    passed_over: dict[str, str] = {}
    for name in ("native",) if queries.values.device.type == "cpu" else ("cuda", "triton"):
        reason = _why_not(name, operation, queries, gallery, similarity, parameters)
        if reason is None and name == "cuda":
            reason = cuda.why_not_unasked(queries, gallery, parameters)
        if reason is None:
            return Explanation(name, passed_over)
        passed_over[name] = reason
    return Explanation("reference", passed_over)


def _why_not(
    impl: str,
    operation: str,
    queries: Sets,
    gallery: Sets,
    similarity: Similarity,
    parameters: dict[str, Any] | None,
) -> str | None:
    asked = operation, queries, gallery, similarity
    more = (parameters,) if impl == "cuda" else ()
    reason: str | None = BACKENDS[impl].why_not(*asked, *more)
    return reason


def run(
    operation: str,
    impl: str,
    queries: Sets,
    gallery: Sets,
    *arguments: Any,
    similarity: Similarity,
    parameters: dict[str, Any],
    **more: Any,
) -> Any:
    """Run an operation by the implementation that serves it, and count the call."""
    chosen = choose(operation, impl, queries, gallery, similarity, parameters).impl
    calls[f"{chosen}.{operation}"] += 1
    function = getattr(BACKENDS[chosen], operation)
    return function(
        queries, gallery, *arguments, similarity=similarity, parameters=parameters, **more
    )
