"""Search over galleries on disk; called as a function, search over sets in memory.

``divse.search`` is both this package and the function ``divse.search(queries, gallery, topk)``:
importing any module of a package binds the package's name, so the package itself answers calls.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from divse.similarity.api import search as _search_in_memory
from divse.similarity.topk import TopK


class _CallablePackage(ModuleType):
    __doc__ = __doc__

    def __call__(self, *args: Any, **kwargs: Any) -> TopK:
        return _search_in_memory(*args, **kwargs)


_CallablePackage.__call__.__doc__ = _search_in_memory.__doc__
sys.modules[__name__].__class__ = _CallablePackage
