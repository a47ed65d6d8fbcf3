"""Searching one filled FAISS index, whatever its kind: clusters to probe, removed sets to skip."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np

from divse.search.filters import Selection
from divse.search.segment import Segment


def import_faiss() -> ModuleType:
    """Import faiss; ImportError says what to do without it."""
    loaded = sys.modules.get("faiss")
    if loaded is not None and hasattr(loaded, "index_factory"):
        return loaded
    try:
        with warnings.catch_warnings():  # its SWIG layer warns about itself on new Pythons
            warnings.simplefilter("ignore", DeprecationWarning)
            import faiss
        if not hasattr(faiss, "index_factory"):
            raise ImportError(f"{faiss!r} is another thing of that name")
    except ImportError as error:
        raise ImportError(
            f"the prefilter needs faiss ({error}): pip install 'divse[cpu]', or plan='exact'"
        ) from None
    module: ModuleType = faiss
    return module


@contextmanager
def naming(spec: str) -> Iterator[None]:
    """Turn FAISS's errors into a ValueError that names the factory string and FAISS's reason."""
    try:
        yield
    except RuntimeError as error:
        raise ValueError(
            f"FAISS cannot make or search the index {spec!r} over inner products: {reason(error)}; "
            "choose another factory string"
        ) from None


def reason(error: RuntimeError) -> str:
    """What FAISS says, without the place in its source."""
    return re.sub(r"^Error in .* at \S+:\d+: ", "", str(error).strip(), flags=re.DOTALL)


def lists(index: Any) -> int:
    """Clusters of an index, 1 if it has none."""
    inverted = import_faiss().try_extract_index_ivf(index)
    return 1 if inverted is None else int(inverted.nlist)


@dataclass(frozen=True)
class Shard:
    """A filled FAISS index over one segment, whose element e is the e-th in the segment's file.

    `copy` is the same on GPUs, if there are any; they take no selectors, and not any number of
    neighbours: then the index itself is searched.
    """

    index: Any
    segment: Segment
    copy: Any = None

    def nearest(
        self, vectors: np.ndarray, count: int, probe: int, selection: Selection | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return inner products (n, count) and the gallery's positions of the elements' owners.

        -inf and -1 where no more were found; removed sets, and those not in the `selection`, are
        never found.
        """
        faiss = import_faiss()
        if self.segment.live is None and selection is None:
            parameters = search_parameters(self.index, probe)
            if self.copy is not None:
                with suppress(RuntimeError):
                    return self._found(vectors, count, parameters, None, self.copy)
            return self._found(vectors, count, parameters, None)
        bitmap = self._all_left if selection is None else selection.elements(self.segment)
        selector = faiss.IDSelectorBitmap(bitmap)
        try:
            parameters = search_parameters(self.index, probe, sel=selector)
            return self._found(vectors, count, parameters, selection)
        except RuntimeError:  # product quantisers, for one, take no selector
            parameters = search_parameters(self.index, probe)
            return self._nearest_of_all(vectors, count, parameters, selection)

    def is_exhaustive(self, probe: int) -> bool:
        """Whether a search computes the inner products with all elements, as they are stored."""
        faiss = import_faiss()
        index = faiss.downcast_index(self.index)
        if self.copy is not None:  # a GPU may round products as it likes
            return False
        if isinstance(index, faiss.IndexIVFFlat):
            return bool(probe >= index.nlist)
        return isinstance(index, faiss.IndexFlat)

    def bytes_read(self, probe: int) -> int:
        """About how many bytes of codes a search for one element looks at."""
        inverted = import_faiss().try_extract_index_ivf(self.index)
        if inverted is not None:
            share = min(1.0, probe / inverted.nlist)
            return int(share * inverted.code_size * self.index.ntotal)
        size = getattr(import_faiss().downcast_index(self.index), "code_size", self.index.d)
        return int(size * self.index.ntotal)

    def _found(
        self,
        vectors: np.ndarray,
        count: int,
        parameters: Any,
        selection: Selection | None,
        index: Any = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Products and owners (n, count); owners not to be found are left as -inf and -1."""
        products, elements = (index or self.index).search(vectors, count, params=parameters)
        owners = self.segment.owners(np.maximum(elements, 0))
        owners[elements < 0] = -1
        if selection is not None:
            owners[~selection.mask[np.maximum(owners, 0)]] = -1
        return np.where(owners >= 0, products, -np.inf), owners

    def _nearest_of_all(
        self, vectors: np.ndarray, count: int, parameters: Any, selection: Selection | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search among all elements, deeper until enough of those are found that may be."""
        entry, asked = self.segment.entry, count
        left = entry.live_elements
        if selection is not None:
            left = len(self.segment.element_index(selection.inside(self.segment)))
        while True:
            asked = min(2 * asked, max(count, entry.elements))
            products, owners = self._found(vectors, asked, parameters, selection)
            enough = (owners >= 0).sum(axis=1) >= min(count, left)
            if enough.all() or asked >= entry.elements:
                break
        order = np.argsort(owners < 0, axis=1, kind="stable")[:, :count]
        return np.take_along_axis(products, order, 1), np.take_along_axis(owners, order, 1)

    @cached_property
    def _all_left(self) -> np.ndarray:
        """Bitmap of the elements of sets that are not removed."""
        mask = np.zeros(self.segment.entry.elements, dtype=bool)
        mask[self.segment.element_index(np.arange(self.segment.sets))] = True
        return np.packbits(mask, bitorder="little")


def copy_on_gpus(index: Any) -> Any:
    """Return a copy of an index on all GPUs, or None: no GPU, or none that can hold its kind."""
    faiss = import_faiss()
    if not getattr(faiss, "get_num_gpus", lambda: 0)():
        return None
    with suppress(RuntimeError):
        return faiss.index_cpu_to_all_gpus(index)
    return None


def search_parameters(index: Any, probe: int, **options: Any) -> Any:
    """FAISS's parameters that look into `probe` clusters, wherever in the index these are.

    `options` (`sel`) go to the innermost index. None where there is nothing to say, as many indexes
    take no parameters at all.
    """
    faiss = import_faiss()
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        inner = search_parameters(index.index, probe, **options)
        return inner and faiss.SearchParametersPreTransform(index_params=inner)
    if isinstance(index, faiss.IndexRefine):
        inner = search_parameters(index.base_index, probe, **options)
        return inner and faiss.IndexRefineSearchParameters(base_index_params=inner)
    if isinstance(index, faiss.IndexIVF):
        rabitq = isinstance(index, faiss.IndexIVFRaBitQ)
        kind = faiss.IVFRaBitQSearchParameters if rabitq else faiss.SearchParametersIVF
        return kind(nprobe=min(probe, index.nlist), **options)
    return faiss.SearchParameters(**options) if options else None
