"""Exact scores of candidates: what a prefilter proposes, put in the order of the similarity."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from divse.search.gallery import Gallery
from divse.search.scan import Hits, Scoring, best_of
from divse.sets import EmbeddingSets
from divse.similarity.api import score_candidates

GATHER_BYTES = 1 << 28  # of gallery sets gathered at a time


def rerank(
    queries: EmbeddingSets,
    gallery: Gallery,
    candidates: np.ndarray,
    topk: int,
    scoring: Scoring,
    progress: Callable[[int], object] | None = None,
) -> Hits:
    """Return the best `topk` of each query's candidates, by exact score, ties by position.

    `candidates` (B, M) int64 holds positions in ascending order, then -1 where a query has fewer
    than M. `progress` hears the number of queries done at each step.
    """
    found = []
    for group in _groups(candidates, gallery):
        mine = candidates[group]
        needed = np.unique(mine[mine >= 0])
        local = np.where(mine >= 0, np.searchsorted(needed, mine), -1)
        exact = score_candidates(
            queries[group].torch(),
            gallery.sets(needed).torch(),
            torch.from_numpy(local),
            **scoring.keywords(),
        )
        found.append(best_of(exact, torch.from_numpy(mine), topk))
        if progress is not None:
            progress(len(mine))
    return Hits(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _groups(candidates: np.ndarray, gallery: Gallery) -> Iterator[slice]:
    """Slices of queries whose candidates fit in memory together."""
    itemsize = np.dtype(gallery.manifest.dtype).itemsize
    per_query = max(1, candidates.shape[1]) * gallery.k * gallery.dim * itemsize
    step = max(1, GATHER_BYTES // per_query)
    for start in range(0, len(candidates), step):
        yield slice(start, start + step)
