"""The prefilter's index: the stored one, or one that is built when it is first needed."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from divse.search import changes
from divse.search.gallery import Gallery
from divse.search.index_files import has_index, open_index
from divse.search.manifest import GalleryError, Manifest
from divse.search.proposal import PrefilterIndex
from divse.search.snapshot import Snapshot

STORED_FROM = 100_000  # elements: an index of fewer is built faster than it is worth keeping


def open_prefilter(
    gallery: Gallery, progress: Callable[[int], object] | None = None
) -> PrefilterIndex:
    """Open the gallery's index, or build it and, if the gallery is large, store it."""
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
