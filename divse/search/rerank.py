"""Exact scores of candidates: what a prefilter proposes, put in the order of the similarity.

Each query has candidates of its own, thousands of them where it must look deep. They are gathered
from the gallery as they are stored and scanned like a small gallery, by the same kernels, so a
candidate has the score that the exact scan gives it.
"""

from __future__ import annotations

import numpy as np
import torch

from divse.search.gallery import Gallery
from divse.search.scan import Hits, Scoring, exact_scan
from divse.sets import EmbeddingSets


def rerank(
    query: EmbeddingSets, gallery: Gallery, candidates: np.ndarray, topk: int, scoring: Scoring
) -> Hits:
    """Return the best `topk` of a query's candidates, by exact score, ties by position.

    `query` (1, K, D) is torch, on the device that scores; `candidates` (M,) int64 are positions
    in ascending order, at least `topk` of them.
    """
    device = query.torch().values.device
    found = exact_scan(query, [(0, gallery.sets(candidates).torch(device))], topk, scoring)
    positions = torch.from_numpy(candidates).to(device)
    return Hits(found.scores, positions[found.positions])
