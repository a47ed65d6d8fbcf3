"""Scan of a gallery as its files hold it, by the C++ kernels: nothing is padded or gathered.

Ragged sets stay packed, removed sets are passed over by their bitmap, and memory maps are read in
place. `certified` reads the int8 codes instead and looks up only the sets that they cannot rule
out: the result is the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from divse.search.scan import Hits, Scoring, merge
from divse.search.segment import Segment
from divse.search.snapshot import Snapshot
from divse.sets import EmbeddingSets, as_tensor
from divse.similarity import certified, dispatch, native
from divse.similarity.inputs import Sets, read_parameters, read_sets
from divse.similarity.table import get_similarity

PART_BYTES = 1 << 28  # of embeddings between two calls of `progress`


def serves(queries: EmbeddingSets, scoring: Scoring) -> bool:
    """Whether the C++ kernels serve an exact search of these queries; as `divse.explain` says."""
    q = read_sets(queries, None, "queries")
    similarity = get_similarity(scoring.similarity)
    return dispatch.choose("search", scoring.impl, q, q, similarity).impl == "native"


def why_not_certified(snapshot: Snapshot, similarity: str) -> str | None:
    """Return why a certified scan cannot serve, or None if it can."""
    if similarity not in certified.SIMILARITIES:
        return f"int8 codes do not bound {similarity}"
    if any(segment.int8 is None for segment in snapshot.segments):
        return "the gallery has no int8 codes: build it with codes=True"
    try:
        import divse_native  # noqa: F401
    except ImportError as error:
        return f"the compiled module divse_native is not installed ({error})"
    return None


def stored_scan(
    queries: EmbeddingSets,
    snapshot: Snapshot,
    topk: int,
    scoring: Scoring,
    *,
    by_codes: bool = False,
    progress: Callable[[int], object] | None = None,
) -> Hits:
    """Return the best `topk` scores and positions (B, topk) of CPU `queries`, ties by position.

    `by_codes` reads int8 codes (`why_not_certified` says whether that is possible).
    """
    best: Hits | None = None
    q = read_sets(queries, None, "queries")
    for segment in snapshot.segments:
        for first, last in _parts(segment):
            count = min(topk, last - first)
            scores, own = _search(q, segment, first, last, count, scoring, by_codes)
            positions = torch.from_numpy(segment.positions(own.numpy() + first))
            found = Hits(scores, torch.where(own < 0, -1, positions))
            best = found if best is None else merge(best, found, topk)
            if progress is not None:
                progress(last - first)
    assert best is not None, "a gallery has at least one segment"
    return best


def _parts(segment: Segment) -> Iterator[tuple[int, int]]:
    """Ranges of the sets of the files, of bounded size, cut between bytes of the bitmap."""
    sets = segment.entry.sets
    step = max(8, PART_BYTES // max(1, segment.embeddings.nbytes // sets) // 8 * 8)
    return ((first, min(first + step, sets)) for first in range(0, sets, step))


def _search(
    q: Sets,
    segment: Segment,
    first: int,
    last: int,
    topk: int,
    scoring: Scoring,
    by_codes: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and places (B, topk) in the files of the best of the sets first..last-1."""
    excluded = None if segment.removed is None else segment.removed[first // 8 : -(-last // 8)]
    offsets, rows = None, slice(first, last)
    if segment.offsets is not None:
        offsets = segment.offsets[first : last + 1] - segment.offsets[first]
        rows = slice(int(segment.offsets[first]), int(segment.offsets[last]))
    similarity = get_similarity(scoring.similarity)
    keywords = scoring.keywords()
    keywords.pop("similarity")
    if by_codes:
        assert segment.int8 is not None
        codes, scales, residuals = segment.int8
        dispatch.calls["native.certified"] += 1
        found = certified.search(
            EmbeddingSets(q.values, q.lengths),
            as_tensor(segment.embeddings[rows]),
            (codes[rows], scales[rows], residuals[rows]),
            topk,
            similarity.name,
            gallery_offsets=offsets,
            excluded=excluded,
            **keywords,
        )
        return torch.as_tensor(found.scores), torch.as_tensor(found.ids)
    dispatch.calls["native.search"] += 1
    given: dict[str, Any] = read_parameters(
        similarity, scoring.alpha, scoring.log_mean, scoring.parameters
    )
    return native.search(
        q,
        Sets(as_tensor(segment.embeddings[rows]), None),
        topk,
        similarity,
        given,
        None if excluded is None else torch.from_numpy(excluded),
        offsets=offsets,
    )
