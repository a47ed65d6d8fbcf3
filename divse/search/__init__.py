"""Galleries on disk and the searcher over them: exact scan, or prefilter with exact rerank.

`divse.search(queries, gallery, topk)` searches sets in memory: calling this package calls
`divse.similarity.search`, so that the function and the package can share the name.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from divse.search.explanation import HitExplanation, explain_hits
    from divse.search.gallery import Gallery
    from divse.search.manifest import GalleryError
    from divse.search.reports import SearchPlan, SearchReport, SearchResult
    from divse.search.searcher import Searcher
    from divse.search.tuned_file import Tuned
    from divse.search.tuning import tune

_LAZY = {
    "Gallery": "divse.search.gallery",
    "GalleryError": "divse.search.manifest",
    "HitExplanation": "divse.search.explanation",
    "SearchPlan": "divse.search.reports",
    "SearchReport": "divse.search.reports",
    "SearchResult": "divse.search.reports",
    "Searcher": "divse.search.searcher",
    "Tuned": "divse.search.tuned_file",
    "explain_hits": "divse.search.explanation",
    "tune": "divse.search.tuning",
}

__all__ = [
    "Gallery",
    "GalleryError",
    "HitExplanation",
    "SearchPlan",
    "SearchReport",
    "SearchResult",
    "Searcher",
    "Tuned",
    "explain_hits",
    "tune",
]


def __getattr__(name: str) -> Any:
    """Load a part on first use, which keeps `import divse` light."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _CallableModule(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from divse.similarity import search

        return search(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
