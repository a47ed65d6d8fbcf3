"""divse: retrieval with sets of embeddings, compared by Smooth-Chamfer similarity.

Every part is loaded where it is first used: `import divse` itself costs nothing, the similarities
need torch and numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from divse.encoder import DivSE
    from divse.search.gallery import Gallery
    from divse.search.searcher import Searcher, SearchResult
    from divse.sets import EmbeddingSets
    from divse.similarity import (
        SIMILARITIES,
        Explanation,
        TopK,
        calls,
        explain,
        hardest_negatives,
        score,
        score_candidates,
        score_pairs,
        search,
        smooth_chamfer,
    )

__version__ = "0.1.0"

_LAZY = {
    "DivSE": "divse.encoder",
    "EmbeddingSets": "divse.sets",
    "Gallery": "divse.search.gallery",
    "SearchResult": "divse.search.searcher",
    "Searcher": "divse.search.searcher",
}
_LAZY |= dict.fromkeys(
    (
        "SIMILARITIES",
        "Explanation",
        "TopK",
        "calls",
        "explain",
        "hardest_negatives",
        "score",
        "score_candidates",
        "score_pairs",
        "smooth_chamfer",
    ),
    "divse.similarity",
)
_PACKAGES = ("search", "sets", "similarity")  # calling divse.search is divse.similarity.search

__all__ = [
    "SIMILARITIES",
    "DivSE",
    "EmbeddingSets",
    "Explanation",
    "Gallery",
    "SearchResult",
    "Searcher",
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


def __dir__() -> list[str]:
    """List the lazy parts too."""
    return sorted({*globals(), *_LAZY, *_PACKAGES})


def __getattr__(name: str) -> Any:
    """Load a part on its first use."""
    if name in _PACKAGES:
        return import_module(f"divse.{name}")
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'divse' has no attribute {name!r}")
