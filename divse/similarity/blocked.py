"""Search and mining over any function of all-pairs scores, one block of the gallery at a time.

For implementations that have no kernel of their own for these: memory holds the scores of one
block, never B x N.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from divse.similarity.inputs import Sets
from divse.similarity.table import Similarity
from divse.similarity.topk import RunningTopK, ordered_topk

Scores = Callable[[Sets, Sets, Similarity, dict[str, Any]], Tensor]
_BLOCK_ELEMENTS = 1 << 24  # cosines, or gathered values, in memory at a time


def slices(total: int, elements: int) -> Iterator[slice]:
    """Cut ``total`` rows of ``elements`` values each into blocks of bounded size."""
    step = max(1, _BLOCK_ELEMENTS // max(1, elements))
    return (slice(start, min(start + step, total)) for start in range(0, total, step))


def _blocks(
    scores: Scores,
    queries: Sets,
    gallery: Sets,
    similarity: Similarity,
    given: dict[str, Any],
    stored: int | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Positions (n,) and scores (B, n) of successive blocks of the gallery.

    ``stored`` values are in memory for a pair of sets: one where ``scores`` is fused; None = all
    cosines of the pair.
    """
    if stored is None:
        stored = queries.values.shape[1] * gallery.values.shape[1]
    for part in slices(len(gallery.values), queries.values.shape[0] * stored):
        block = scores(queries, gallery[part], similarity, given)
        yield torch.arange(part.start, part.stop, device=block.device), block


def search(
    scores: Scores,
    queries: Sets,
    gallery: Sets,
    topk: int,
    similarity: Similarity,
    parameters: dict[str, Any],
    excluded: Tensor | None = None,
    stored: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The best scores and positions (B, topk), ties by position; -inf and -1 where none is left.

    ``excluded`` is a bitmap: bit n & 7 of byte n >> 3 set = set n is left out.
    """
    best = RunningTopK(topk)
    for positions, block in _blocks(scores, queries, gallery, similarity, parameters, stored):
        if excluded is not None:
            out = (excluded[positions >> 3] >> (positions & 7)) & 1
            block = block.masked_fill(out.bool(), -torch.inf)
            best.add(block, torch.where(out.bool(), -1, positions))
        else:
            best.add(block, positions)
    assert best.scores is not None and best.ids is not None
    return best.scores, best.ids


def hardest_negatives(
    scores: Scores,
    queries: Sets,
    gallery: Sets,
    query_groups: Tensor,
    gallery_groups: Tensor,
    topn: int,
    similarity: Similarity,
    parameters: dict[str, Any],
    stored: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The ``topn`` best sets of another group, both ways: (B, topn) and (N, topn), -1 = none."""
    best = RunningTopK(topn)
    back = []
    for positions, block in _blocks(scores, queries, gallery, similarity, parameters, stored):
        positive = query_groups[:, None] == gallery_groups[None, positions]
        block = block.masked_fill(positive, -torch.inf)
        best.add(block, positions)
        back.append(_or_none(*ordered_topk(block.mT, min(topn, block.shape[0])), topn))
    assert best.scores is not None and best.ids is not None
    return _or_none(best.scores, best.ids, topn), torch.cat(back)


def _or_none(scores: Tensor, ids: Tensor, topn: int) -> Tensor:
    """Positions with -1 where there is nothing, filled up to ``topn`` columns."""
    ids = torch.where(scores == -torch.inf, -1, ids)
    return torch.nn.functional.pad(ids, (0, topn - ids.shape[1]), value=-1)
