"""Candidates of each query: the sets that own the elements nearest to the query's elements.

A set that scores high shares near elements with the query, so looking up the `depth` nearest
elements of each query element and taking their owners finds the best sets with high probability,
not with certainty. The depth caps the recall, not the number of clusters looked into.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np

from divse.search import changes
from divse.search.element_index import ElementIndex
from divse.search.gallery import Gallery
from divse.search.index_files import has_index, open_index
from divse.search.manifest import GalleryError, Manifest
from divse.search.snapshot import Snapshot
from divse.sets import EmbeddingSets

DEPTH = 200  # nearest elements of each query element, where the caller does not say
PROBED_SHARE = 16  # one in so many clusters is looked into, and
LEAST_PROBED = 8  # at least these
STORED_FROM = 100_000  # elements: an index of fewer is built faster than it is worth keeping


class Prefilter:
    """Proposes candidates from an element index over `elements` elements."""

    def __init__(self, index: ElementIndex, elements: int) -> None:
        self.index, self._elements = index, elements

    def candidates(self, queries: EmbeddingSets, depth: int, least: int) -> list[np.ndarray]:
        """Return each query's candidates: positions in ascending order, at least `least` of them.

        Queries whose neighbours belong to fewer sets are asked again, deeper and wider.
        """
        found: list[np.ndarray] = [np.empty(0, dtype=np.int64)] * len(queries)
        waiting = np.arange(len(queries))
        probe = max(LEAST_PROBED, self.index.lists // PROBED_SHARE)
        elements = self._elements
        while len(waiting):
            depth = min(depth, elements)
            for at, owners in enumerate(self._owners(queries[waiting], depth, probe)):
                found[waiting[at]] = owners
            if depth == elements and probe >= self.index.lists:
                break
            waiting = np.array([row for row in waiting if len(found[row]) < least], dtype=int)
            depth, probe = depth * 4, probe * 4
        return found

    def _owners(self, queries: EmbeddingSets, depth: int, probe: int) -> list[np.ndarray]:
        """The owners of the nearest elements of each query, each once, in ascending order."""
        values = np.asarray(queries.numpy().values, dtype=np.float32)
        real = np.ones(values.shape[:2], dtype=bool)
        if queries.lengths is not None:
            real = np.arange(queries.k) < np.asarray(queries.lengths)[:, None]
        owners = self.index.owners(values[real], depth, probe)
        bounds = np.cumsum(real.sum(axis=1))[:-1]
        unique = [np.unique(part) for part in np.split(owners, bounds)]
        return [part[part >= 0] for part in unique]


def open_prefilter(gallery: Gallery, progress: Callable[[int], object] | None = None) -> Prefilter:
    """Open the gallery's element index, or build it and, if the gallery is large, store it."""
    state: Snapshot = gallery
    if not has_index(gallery) and gallery.manifest.elements >= STORED_FROM:
        try:
            before = gallery.manifest.checksum
            after = changes.build_index(gallery.path, None, progress, only_state=before)
            if _same_sets(after.manifest, gallery.manifest):
                state = after
        except (OSError, GalleryError) as error:
            warnings.warn(
                f"the index is not stored and must be built again next time: {error}", stacklevel=2
            )
    return Prefilter(open_index(state, progress), gallery.manifest.elements)


def _same_sets(one: Manifest, other: Manifest) -> bool:
    """Whether two states hold the same sets at the same positions."""
    first, second = ([(s.name, s.removed) for s in state.segments] for state in (one, other))
    return first == second
