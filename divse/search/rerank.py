"""Exact scores of candidates: what a prefilter proposes, put in the order of the similarity.

Each query has candidates of its own. The C++ kernel scores them where they lie in the memory-mapped
files, all queries in one call for each segment; a GPU that holds the gallery scores them in its
memory. Otherwise they are gathered and scanned like a small gallery. A candidate has the score that
the exact scan gives it.
"""

from __future__ import annotations

import numpy as np
import torch

from divse.search.request import Request
from divse.search.scan import Hits, best_of, exact_scan
from divse.search.stored_scan import serves, stored_candidates
from divse.sets import as_tensor
from divse.similarity.api import score_candidates


def rerank(request: Request, candidates: np.ndarray) -> Hits:
    """Return the best `topk` candidates of each query, by exact score, ties by position.

    `candidates` (B, M) int64 are positions, in ascending order in each row but for -1, which is
    none. Where a row has too few, the last scores are -inf and their positions -1.
    """
    short = request.topk - candidates.shape[1]
    if short > 0:
        candidates = np.pad(candidates, ((0, 0), (0, short)), constant_values=-1)
    queries, scoring = request.on_device, request.scoring
    if serves(queries, scoring):
        return stored_candidates(queries, request.gallery, candidates, request.topk, scoring)
    if request.resident is None:
        return _gathered(request, candidates)
    positions = torch.from_numpy(candidates).to(request.device)
    scores = score_candidates(
        queries, request.resident.sets, positions, impl=scoring.impl, **scoring.keywords()
    )
    return best_of(as_tensor(scores), positions, request.topk)


def _gathered(request: Request, candidates: np.ndarray) -> Hits:
    """The same for any implementation, one query after another."""
    scores = torch.full((len(candidates), request.topk), -torch.inf)
    positions = torch.full(scores.shape, -1)
    for row, proposed in enumerate(candidates):
        own = proposed[proposed >= 0]
        if not len(own):
            continue
        sets = request.gallery.sets(own).torch(request.device)
        query = request.queries[row : row + 1].torch(request.device)
        best = exact_scan(query, [(0, sets)], request.topk, request.scoring)
        found = best.scores.shape[1]
        scores[row, :found] = best.scores[0].float().cpu()
        positions[row, :found] = torch.from_numpy(own)[best.positions[0].cpu()]
    return Hits(scores, positions)
