"""The operations that the Triton kernels of ``divse_kernels`` serve, on CUDA tensors."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from divse.similarity import blocked
from divse.similarity.inputs import Sets
from divse.similarity.table import Similarity

#: Log-sum-exps are for training, which takes all scores where these kernels cannot serve.
_OPERATIONS = frozenset(
    {"scores", "pairs", "candidates", "search", "hardest_negatives", "log_sum_exps"}
)
#: Those that serve sets of up to a thousand elements.
_LONG = _OPERATIONS - {"log_sum_exps"}


def why_not(operation: str, queries: Sets, gallery: Sets, similarity: Similarity) -> str | None:
    """Return why the Triton kernels cannot serve a call, or None if they can."""
    if "triton" not in similarity.fused:
        return f"it has no kernel for {similarity.name}"
    if operation not in _OPERATIONS:
        return f"it has no kernel for {operation}"
    try:
        import divse_kernels
    except ImportError as error:
        return f"Triton is not installed ({error})"
    longest = divse_kernels.LONGEST if operation in _LONG else divse_kernels.MAX_SIZE
    # Without the sets themselves, as a conversion would copy them.
    q, g = queries.values[:0], gallery.values[:0]
    reason: str | None
    if operation in ("candidates", "search"):
        reason = divse_kernels.supports(_query_dtype(q, g), g, mixed=True, longest=longest)
    else:
        reason = divse_kernels.supports(*_one_dtype(q, g), longest=longest)
    return reason


def _one_dtype(q: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """The tensor cores multiply operands of one type: a mixed pair goes to the wider one."""
    wide = torch.promote_types(q.dtype, g.dtype)
    return q.to(wide), g.to(wide)


def _query_dtype(q: Tensor, g: Tensor) -> Tensor:
    """Queries in the gallery's type, or else in float32: a gallery is too large to convert."""
    return q if q.dtype == g.dtype else q.to(torch.promote_types(q.dtype, torch.float32))


def scores(
    queries: Sets, gallery: Sets, similarity: Similarity, parameters: dict[str, Any]
) -> Tensor:
    """Scores (B, N); differentiable."""
    import divse_kernels

    q, g = _one_dtype(queries.values, gallery.values)
    result: Tensor = divse_kernels.scores(
        q,
        g,
        similarity.name,
        query_lengths=queries.lengths,
        gallery_lengths=gallery.lengths,
        **parameters,
    )
    return result


def pairs(
    a: Sets,
    b: Sets,
    similarity: Similarity,
    parameters: dict[str, Any],
    ids: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Scores (N,) of set n of ``a`` with set n of ``b``, or (P,) of the sets that ``ids`` name.

    ``ids`` are positions (P,) in ``a`` and in ``b``; -1 = none, scored -inf. Differentiable.
    """
    import divse_kernels

    own = torch.arange(len(a.values), device=a.values.device)
    result: Tensor = divse_kernels.score_pairs(
        *_one_dtype(a.values, b.values),
        *(ids or (own, own)),
        similarity.name,
        query_lengths=a.lengths,
        gallery_lengths=b.lengths,
        **parameters,
    )
    return result


def candidates(
    queries: Sets,
    gallery: Sets,
    chosen: Tensor,
    similarity: Similarity,
    parameters: dict[str, Any],
) -> Tensor:
    """Scores (B, M) of each query with its own candidates (B, M), -1 = none; differentiable."""
    import divse_kernels

    result: Tensor = divse_kernels.score_candidates(
        _query_dtype(queries.values, gallery.values),
        gallery.values,
        chosen.to(torch.int64),
        similarity.name,
        query_lengths=queries.lengths,
        gallery_lengths=gallery.lengths,
        **parameters,
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
    """The best ``topk`` scores and positions (B, topk)."""
    import divse_kernels

    if topk > most_results():
        return blocked.search(
            scores, queries, gallery, topk, similarity, parameters, excluded, stored=1
        )
    found: tuple[Tensor, Tensor] = divse_kernels.search(
        _query_dtype(queries.values, gallery.values),
        gallery.values,
        topk,
        query_lengths=queries.lengths,
        gallery_lengths=gallery.lengths,
        excluded=excluded,
        similarity=similarity.name,
        **_known(parameters),
    )
    return found


def search_blocks(
    queries: Sets,
    blocks: Iterable[tuple[int, Sets]],
    topk: int,
    similarity: Similarity,
    parameters: dict[str, Any],
    excluded: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same in a gallery that comes in blocks (position of the first set, sets on the host)."""
    import divse_kernels

    blocks = iter(blocks)
    start = next(blocks)
    found: tuple[Tensor, Tensor] = divse_kernels.search_blocks(
        _query_dtype(queries.values, start[1].values),
        ((first, sets.values, sets.lengths) for first, sets in chain([start], blocks)),
        topk,
        query_lengths=queries.lengths,
        excluded=excluded,
        similarity=similarity.name,
        **_known(parameters),
    )
    return found


def why_not_certified(dim: int, size: int) -> str | None:
    """Return why the certified search cannot serve sets of so many dimensions and elements."""
    try:
        from divse_kernels import MAX_SIZE
        from divse_kernels.certified import CODE_STEP
    except ImportError as error:
        return f"Triton is not installed ({error})"
    if dim % CODE_STEP:
        return f"the Triton kernel reads codes of D in steps of {CODE_STEP}, and D is {dim}"
    if size > MAX_SIZE:
        return f"the Triton kernel serves sets of up to {MAX_SIZE} elements, and one has {size}"
    return None


def certified_search(
    queries: Sets,
    gallery: Sets,
    codes: tuple[Tensor, Tensor, Tensor],
    topk: int,
    similarity: Similarity,
    parameters: dict[str, Any],
    excluded: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `search`, reading mostly the int8 codes, scales and residuals; also the sets it scored.

    That is (B,): how many sets of the gallery (N, L, D) the codes could not rule out.
    """
    import divse_kernels

    found: tuple[Tensor, Tensor, Tensor] = divse_kernels.certified_search(
        _query_dtype(queries.values, gallery.values),
        gallery.values,
        *codes,
        topk,
        query_lengths=queries.lengths,
        gallery_lengths=gallery.lengths,
        excluded=excluded,
        similarity=similarity.name,
        **_known(parameters),
    )
    return found


def most_results() -> int:
    """The largest ``topk`` of the search kernels; beyond, scores are sorted block by block."""
    import divse_kernels

    return int(divse_kernels.MAX_TOPK)


def _known(parameters: dict[str, Any]) -> dict[str, Any]:
    """Parameters with alpha as a number: a search has no gradient, and the kernels run faster."""
    alpha = parameters.get("alpha")
    return parameters | {"alpha": float(alpha)} if isinstance(alpha, Tensor) else parameters


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
    import divse_kernels

    longest = max(queries.values.shape[1], gallery.values.shape[1])
    if topn > divse_kernels.MAX_TOPN or longest > divse_kernels.MAX_SIZE:
        groups = query_groups, gallery_groups
        return blocked.hardest_negatives(
            scores, queries, gallery, *groups, topn, similarity, parameters, stored=1
        )
    found: tuple[Tensor, Tensor] = divse_kernels.hardest_negatives(
        *_one_dtype(queries.values, gallery.values),
        query_groups,
        gallery_groups,
        topn,
        query_lengths=queries.lengths,
        gallery_lengths=gallery.lengths,
        similarity=similarity.name,
        **parameters,
    )
    return found


def log_sum_exps(
    queries: Sets,
    gallery: Sets,
    query_groups: Tensor,
    gallery_groups: Tensor,
    temperature: float,
    similarity: Similarity,
    parameters: dict[str, Any],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logsumexp(scores / temperature) over sets of another group, (B,) and (N,); differentiable.

    Then the largest of these scores, (B,) and (N,), without a gradient.
    """
    import divse_kernels

    found: tuple[Tensor, Tensor, Tensor, Tensor] = divse_kernels.row_column_lse(
        *_one_dtype(queries.values, gallery.values),
        query_groups,
        gallery_groups,
        temperature=temperature,
        with_maxima=True,
        query_lengths=queries.lengths,
        gallery_lengths=gallery.lengths,
        similarity=similarity.name,
        **parameters,
    )
    return found


def rbf_mean(x: Tensor, y: Tensor) -> Tensor:
    """Mean of exp(-|x - y| / 2) over all pairs of elements (P, D) and (Q, D); differentiable."""
    import divse_kernels

    result: Tensor = divse_kernels.rbf_mean(*(_one_dtype(x, y) if y is not x else (x,)))
    return result
