"""Candidates of each query: the sets that own the elements nearest to the query's elements.

A set that scores high shares near elements with the query, so looking up the `depth` nearest
elements of each query element and taking their owners finds the best sets with high probability,
not with certainty: `adaptive` looks deeper until the answer stays the same, or is proven.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from divse.search import changes
from divse.search.element_index import ElementIndex
from divse.search.filters import Selection
from divse.search.gallery import Gallery
from divse.search.index_files import has_index, open_index
from divse.search.manifest import GalleryError, Manifest
from divse.search.snapshot import Snapshot
from divse.sets import EmbeddingSets

STORED_FROM = 100_000  # elements: an index of fewer is built faster than it is worth keeping


class Proposal(NamedTuple):
    """Candidates of B queries.

    `candidates` (B, M) int64: positions, each once and in ascending order in a row; -1 between
    them is none. `limits` (B, K): what no cosine of a query element with an element that was not
    returned exceeds, where the index is exhaustive; -inf where all elements were returned, and
    where a query has fewer than K elements.
    """

    candidates: np.ndarray
    limits: np.ndarray


def propose(
    index: ElementIndex,
    queries: EmbeddingSets,
    depth: int,
    probe: int,
    selection: Selection | None = None,
) -> Proposal:
    """Look up the `depth` nearest elements of each query element in `probe` clusters."""
    values = np.asarray(queries.numpy().values, dtype=np.float32)
    real = np.ones(values.shape[:2], dtype=bool)
    if queries.lengths is not None:
        real = np.arange(queries.k) < np.asarray(queries.lengths)[:, None]
    products, found = index.nearest(values[real], depth, probe, selection)
    limits = np.full(real.shape, -np.inf, dtype=np.float32)
    limits[real] = products.min(axis=1)
    owners = np.full((*real.shape, found.shape[1]), -1, dtype=np.int64)
    owners[real] = found
    candidates = np.sort(owners.reshape(len(values), -1), axis=1)
    candidates[:, 1:][candidates[:, 1:] == candidates[:, :-1]] = -1
    return Proposal(candidates, limits)


def open_prefilter(
    gallery: Gallery, progress: Callable[[int], object] | None = None
) -> ElementIndex:
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
    return open_index(state, progress)


def _same_sets(one: Manifest, other: Manifest) -> bool:
    """Whether two states hold the same sets at the same positions."""
    first, second = ([(s.name, s.removed) for s in state.segments] for state in (one, other))
    return first == second
