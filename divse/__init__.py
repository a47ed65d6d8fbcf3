"""divse: retrieval with sets of embeddings, compared by Smooth-Chamfer similarity.

Needs torch and numpy to be imported; everything else is loaded where it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
    smooth_chamfer,
)

if TYPE_CHECKING:
    from divse.encoder import DivSE
    from divse.search.gallery import Gallery
    from divse.search.searcher import Searcher, SearchResult
    from divse.similarity import search
else:
    from divse import search  # the package: calling it is divse.similarity.search

__version__ = "0.1.0"

_LAZY = {
    "DivSE": "divse.encoder",
    "Gallery": "divse.search.gallery",
    "SearchResult": "divse.search.searcher",
    "Searcher": "divse.search.searcher",
}

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
    return sorted({*globals(), *_LAZY})


def __getattr__(name: str) -> Any:
    """Load the parts with further dependencies on first use."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'divse' has no attribute {name!r}")
