"""Scan of a gallery as its files hold it, by the C++ kernels: nothing is padded or gathered.

Ragged sets stay packed, removed sets and those that a filter excludes are passed over by their
bitmap, and memory maps are read in place. `certified` reads the int8 codes instead and looks up
only the sets that they cannot rule out: the result is the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from divse.search.filters import Selection
from divse.search.scan import Hits, Scoring, merge
from divse.search.segment import Segment
from divse.search.snapshot import Snapshot
from divse.sets import EmbeddingSets, as_tensor
from divse.similarity import certified, dispatch, native, triton
from divse.similarity.inputs import Sets, read_parameters, read_sets
from divse.similarity.table import Similarity, get_similarity

PART_BYTES = 1 << 28  # of embeddings between two calls of `progress`


def serves(queries: EmbeddingSets, scoring: Scoring) -> bool:
    """Whether the C++ kernels serve an exact search of these queries; as `divse.explain` says."""
    q = read_sets(queries, None, "queries")
    similarity = get_similarity(scoring.similarity)
    return dispatch.choose("search", scoring.impl, q, q, similarity).impl == "native"


def serves_codes(queries: EmbeddingSets, scoring: Scoring) -> bool:
    """Whether they serve a search of these queries by codes."""
    return scoring.similarity in certified.SIMILARITIES and serves(queries, scoring)


def why_not_certified(snapshot: Snapshot, similarity: str, impl: str = "native") -> str | None:
    """Return why a certified scan by "native" or "triton" cannot serve, or None if it can."""
    if similarity not in certified.SIMILARITIES:
        return f"int8 codes do not bound {similarity}"
    if any(segment.int8 is None for segment in snapshot.segments):
        return "the gallery has no int8 codes: build it with codes=True"
    if impl == "triton":
        return triton.why_not_certified(snapshot.dim, snapshot.k)
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
    selection: Selection | None = None,
    progress: Callable[[int], object] | None = None,
) -> tuple[Hits, int]:
    """Return the best `topk` scores and positions (B, topk) of CPU `queries`, ties by position.

    Also how many sets were scored exactly, for all queries. `by_codes` reads int8 codes
    (`why_not_certified` says whether that is possible). With a `selection` only its sets are found;
    where it has too few, the last scores are -inf and their positions -1.
    """
    best: Hits | None = None
    scored = 0
    q = read_sets(queries, None, "queries")
    for segment in snapshot.segments:
        excluded = segment.removed if selection is None else selection.excluded(segment)
        for first, last in _parts(segment):
            part = _Part(segment, first, last, excluded)
            if part.left:
                hits, exactly = _search(q, part, min(topk, last - first), scoring, by_codes)
                scored += exactly
                best = hits if best is None else merge(best, hits, topk)
            if progress is not None:
                progress(last - first)
    if best is None:
        raise ValueError("there is nothing to search: no set is left")
    return best, scored


@dataclass(frozen=True)
class _Part:
    """The sets first..last-1 of a segment's files; `bits` is the whole segment's bitmap."""

    segment: Segment
    first: int
    last: int
    bits: np.ndarray | None

    @property
    def excluded(self) -> np.ndarray | None:
        """The bitmap of this part, which begins with a byte of its own."""
        return None if self.bits is None else self.bits[self.first // 8 : -(-self.last // 8)]

    @property
    def left(self) -> int:
        """Sets that are not excluded."""
        if self.excluded is None:
            return self.last - self.first
        out = np.unpackbits(self.excluded, count=self.last - self.first, bitorder="little")
        return len(out) - int(out.sum())

    @property
    def rows(self) -> slice:
        """The first axis of the embeddings and codes."""
        offsets = self.segment.offsets
        if offsets is None:
            return slice(self.first, self.last)
        return slice(int(offsets[self.first]), int(offsets[self.last]))

    @property
    def offsets(self) -> np.ndarray | None:
        """Where each set begins among these rows, if the sets are packed."""
        offsets = self.segment.offsets
        return None if offsets is None else offsets[self.first : self.last + 1] - self.rows.start

    def positions(self, own: torch.Tensor) -> torch.Tensor:
        """The gallery's positions of sets `own` of this part, -1 for -1."""
        found = self.segment.positions(own.numpy() + self.first)
        return torch.where(own < 0, -1, torch.from_numpy(found))


def _parts(segment: Segment) -> Iterator[tuple[int, int]]:
    """Ranges of the sets of the files, of bounded size, cut between bytes of the bitmap."""
    sets = segment.entry.sets
    step = max(8, PART_BYTES // max(1, segment.embeddings.nbytes // sets) // 8 * 8)
    return ((first, min(first + step, sets)) for first in range(0, sets, step))


def _search(q: Sets, part: _Part, topk: int, scoring: Scoring, by_codes: bool) -> tuple[Hits, int]:
    """The best sets of a part, and how many of it were scored exactly, for all queries."""
    if by_codes:
        return _by_codes(q, part, topk, scoring)
    dispatch.calls["native.search"] += 1
    similarity, given = parameters_of(scoring)
    scores, own = native.search(
        q,
        Sets(as_tensor(part.segment.embeddings[part.rows]), None),
        topk,
        similarity,
        given,
        None if part.excluded is None else torch.from_numpy(part.excluded),
        offsets=part.offsets,
    )
    return Hits(scores, part.positions(own)), part.left * len(scores)


def _by_codes(q: Sets, part: _Part, topk: int, scoring: Scoring) -> tuple[Hits, int]:
    segment, rows = part.segment, part.rows
    assert segment.int8 is not None
    codes, scales, residuals = segment.int8
    dispatch.calls["native.certified"] += 1
    found = certified.search(
        EmbeddingSets(q.values, q.lengths),
        as_tensor(segment.embeddings[rows]),
        (codes[rows], scales[rows], residuals[rows]),
        topk,
        gallery_offsets=part.offsets,
        excluded=part.excluded,
        **scoring.keywords(),
    )
    hits = Hits(torch.as_tensor(found.scores), part.positions(torch.as_tensor(found.ids)))
    return hits, int(torch.as_tensor(found.survivors).sum())


def stored_candidates(
    queries: EmbeddingSets,
    snapshot: Snapshot,
    candidates: np.ndarray,
    topk: int,
    scoring: Scoring,
) -> Hits:
    """Return the best `topk` of each query's candidates (B, M), positions or -1, ties by position.

    The kernel reads them where they lie in the files: nothing is copied. Where there are too few,
    the last scores are -inf and their positions -1.
    """
    q = read_sets(queries, None, "queries")
    similarity, given = parameters_of(scoring)
    scores = np.full((len(candidates), topk), -np.inf, np.float32)
    best = Hits(torch.from_numpy(scores), torch.full(scores.shape, -1))
    for segment in snapshot.segments:
        own = candidates
        if len(snapshot.segments) > 1 or segment.live is not None:
            inside = (candidates >= segment.start) & (candidates < segment.start + segment.sets)
            if not inside.any():
                continue
            own = np.full(candidates.shape, -1)
            own[inside] = segment.own(candidates[inside] - segment.start)
        dispatch.calls["native.candidates"] += 1
        embeddings = as_tensor(segment.embeddings)
        scores, found = native.stored_candidates(
            q, embeddings, own, topk, similarity, given, segment.offsets
        )
        if own is not candidates:
            found = np.where(found < 0, -1, segment.positions(np.maximum(found, 0)))
        best = merge(best, Hits(torch.from_numpy(scores), torch.from_numpy(found)), topk)
    return best


def parameters_of(scoring: Scoring) -> tuple[Similarity, dict[str, Any]]:
    """The similarity, and the keyword arguments that its kernels take."""
    similarity = get_similarity(scoring.similarity)
    given = read_parameters(similarity, scoring.alpha, scoring.log_mean, scoring.parameters)
    return similarity, given
