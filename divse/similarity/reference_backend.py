"""Every operation in plain torch, on any device and in float64 too: the specification, run.

It holds the cosines of all pairs of elements of one block at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from divse.similarity import blocked
from divse.similarity.inputs import Sets
from divse.similarity.table import Similarity


def why_not(operation: str, queries: Sets, gallery: Sets, similarity: Similarity) -> str | None:
    """Return None: plain torch serves every call."""
    return None


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def scores(
    queries: Sets, gallery: Sets, similarity: Similarity, parameters: dict[str, Any]
) -> Tensor:
    """Scores (B, N); differentiable."""
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


def pairs(a: Sets, b: Sets, similarity: Similarity, parameters: dict[str, Any]) -> Tensor:
    """Scores (N,) of set n of ``a`` with set n of ``b``; differentiable."""
    own = torch.arange(len(b.values), device=b.values.device)[:, None]
    return _gathered(a, b, own, similarity, parameters)[:, 0]


def candidates(
    queries: Sets,
    gallery: Sets,
    chosen: Tensor,
    similarity: Similarity,
    parameters: dict[str, Any],
) -> Tensor:
    """Scores (B, M) of each query with its own candidates (B, M), -1 = none; differentiable."""
    per_query = chosen.shape[1] * gallery.values.shape[1] * gallery.values.shape[2]
    blocks = [
        _gathered(queries[rows], gallery, chosen[rows], similarity, parameters)
        for rows in blocked.slices(len(chosen), per_query)
    ]
    return torch.cat(blocks) if blocks else _wide(queries.values).new_zeros(chosen.shape)


def _gathered(
    queries: Sets,
    gallery: Sets,
    chosen: Tensor,
    similarity: Similarity,
    parameters: dict[str, Any],
) -> Tensor:
    """Scores (b, m) of the queries with their own gathered gallery sets; -1 gives -inf."""
    flat = chosen.clamp_min(0).reshape(-1)
    found = Sets(gallery.values[flat], None if gallery.lengths is None else gallery.lengths[flat])
    sets = _wide(found.clean()).view(*chosen.shape, *gallery.values.shape[1:])
    rows, columns = queries.mask, found.mask
    with torch.autocast(sets.device.type, enabled=False):
        result = similarity.reduce(
            torch.einsum("bkd,bmld->bmkl", _wide(queries.clean()).to(sets.dtype), sets),
            None if rows is None else rows[:, None, :],
            None if columns is None else columns.view(*chosen.shape, -1),
            **parameters,
        )
    return result.masked_fill(chosen < 0, -torch.inf)


def search(
    queries: Sets,
    gallery: Sets,
    topk: int,
    similarity: Similarity,
    parameters: dict[str, Any],
    excluded: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The best ``topk`` scores and positions (B, topk), block by block."""
    return blocked.search(scores, queries, gallery, topk, similarity, parameters, excluded)


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
