"""Similarities of two sets: the specification, its fast implementations, the public functions."""

from divse.similarity.api import (
    explain,
    hardest_negatives,
    score,
    score_candidates,
    score_pairs,
    search,
    smooth_chamfer,
)
from divse.similarity.dispatch import Explanation, calls
from divse.similarity.table import SIMILARITIES, Similarity
from divse.similarity.topk import TopK

__all__ = [
    "SIMILARITIES",
    "Explanation",
    "Similarity",
    "TopK",
    "calls",
    "explain",
    "hardest_negatives",
    "score",
    "score_candidates",
    "score_pairs",
    "search",
    "smooth_chamfer",
]
