"""Sketches: the sets in few dimensions and int8, scored as wholes, to propose candidates.

Elements become sketches (`sketching`) in int8 codes with a scale (`divse.similarity.quantise`). A
scan scores every sketched set, or those of the cells nearest to the query, against the sketched
query by the similarity that was asked for, so that what counts is how the whole set matches; the
nearest elements, which `ElementIndex` goes by, may belong to thousands of sets that share one
topic. A scan reads d + 4 bytes an element.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from divse.search.coded_sets import CodedSets
from divse.search.filters import Selection
from divse.search.proposal import Best, Effort, Proposal
from divse.search.request import Request
from divse.search.scan import Hits, Scoring, merge
from divse.search.segment import Segment
from divse.search.sketching import Sketching
from divse.search.stored_scan import parameters_of, serves_codes
from divse.sets import EmbeddingSets, as_tensor
from divse.similarity import dispatch, native
from divse.similarity.inputs import read_sets

LEAST_DEPTH = 1024  # sets of a query that are scored exactly,
DEPTH_SHARE = 256  # or one in so many, if that is more,
DEPTH_A_HIT = 32  # or so many for each of the best that are asked for


@dataclass(frozen=True)
class SketchShard:
    """The sketches of one segment, removed sets too."""

    sets: CodedSets
    segment: Segment

    def search(
        self,
        queries: EmbeddingSets,
        topk: int,
        scoring: Scoring,
        selection: Selection | None,
        probe: int | None = None,
    ) -> Hits:
        """Return the best sets by their sketches, estimates and gallery's positions (B, <= topk).

        `queries` (B, K, d) are sketches, `probe` as in `CodedSets.search`. -inf and -1 where fewer
        sets may be found.
        """
        topk = min(topk, self.segment.entry.sets)
        hits = self.sets.search(queries, topk, scoring, self._excluded(selection), probe)
        return Hits(hits.scores, torch.from_numpy(self._positions(hits.positions.numpy())))

    def best(self, request: Request, sketches: np.ndarray, depth: int, probe: int | None) -> Best:
        """Return the best sets by exact score of the `depth` best by their sketches."""
        segment = self.segment
        similarity, given = parameters_of(request.scoring)
        scores, own, seen = native.estimates_scored(
            sketches,
            read_sets(request.queries, None, "queries"),
            (self.sets.native, self._embeddings, segment.offsets),
            min(depth, segment.entry.sets),
            request.topk,
            similarity,
            given,
            self._excluded(request.selection),
            probe,
        )
        dispatch.calls["native.estimates_scored"] += 1
        return Best(scores, self._positions(own), seen, None, 0)

    @cached_property
    def _embeddings(self) -> torch.Tensor:
        return as_tensor(self.segment.embeddings)

    def _excluded(self, selection: Selection | None) -> np.ndarray | None:
        segment = self.segment
        return segment.removed if selection is None else selection.excluded(segment)

    def _positions(self, own: np.ndarray) -> np.ndarray:
        """The gallery's positions of sets of the files, -1 for -1."""
        if self.segment.live is None and not self.segment.start:
            return own
        return np.where(own < 0, -1, self.segment.positions(np.maximum(own, 0)))


@dataclass(frozen=True)
class SketchIndex:
    """The sketches of all segments of one state of a gallery."""

    sketching: Sketching
    shards: tuple[SketchShard, ...]
    spec: str

    @cached_property
    def lists(self) -> int:
        """The number of cells, 1 without."""
        leaders = self.sketching.leaders
        return 1 if leaders is None else len(leaders)

    def first_effort(self, topk: int, passing: float) -> Effort:
        """One round over all cells: no draw of leaders knows what will be asked; `tune` measures.

        Nearly all of its time is the scan, which is the same at any depth.
        """
        depth = max(LEAST_DEPTH, self._sets // DEPTH_SHARE, DEPTH_A_HIT * topk)
        return Effort(depth, self.lists, 1)

    def fit(self, depth: int, topk: int) -> int:
        """At least as many sets as are asked for: another round would be another scan."""
        return min(max(depth, topk), self._sets)

    @cached_property
    def _sets(self) -> int:
        return sum(shard.segment.sets for shard in self.shards)

    def is_exhaustive(self, probe: int) -> bool:
        """No: what the other axes add to a cosine is not known."""
        return False

    def propose(
        self, queries: EmbeddingSets, scoring: Scoring, effort: Effort, selection: Selection | None
    ) -> Proposal:
        """Propose the `depth` best sets by their sketches, of the `probe` nearest cells."""
        sketches = self.sketching.sketch(queries.numpy()).torch()
        probe = self._probe(effort)
        hits = None
        for shard in self.shards:
            own = shard.search(sketches, effort.depth, scoring, selection, probe)
            hits = own if hits is None else merge(hits, own, effort.depth)
        assert hits is not None
        candidates = np.sort(hits.positions.numpy(), axis=1)
        limits = np.full((len(queries), queries.k), np.inf, np.float32)
        return Proposal(candidates, limits, self._bytes_read(probe, len(queries)))

    def best(self, request: Request, effort: Effort) -> Best | None:
        """The same and exact scores of them, where the kernel does both in one segment."""
        scoring = request.scoring
        if len(self.shards) > 1 or request.device.type != "cpu" or request.resident is not None:
            return None
        if not serves_codes(request.queries, scoring):
            return None
        sketches = np.ascontiguousarray(self.sketching.sketch(request.queries).values)
        probe = self._probe(effort)
        best = self.shards[0].best(request, sketches, effort.depth, probe)
        return best._replace(bytes_read=self._bytes_read(probe, len(sketches)))

    def _probe(self, effort: Effort) -> int | None:
        """Cells to look into, None for all."""
        return effort.probe if effort.probe < self.lists else None

    def _bytes_read(self, probe: int | None, queries: int) -> int:
        """Bytes of codes and scales that are looked at, about: as if cells were of one size."""
        each = sum(shard.sets.codes.nbytes + shard.sets.scales.nbytes for shard in self.shards)
        if probe is None:
            return each
        leaders = self.sketching.coded_leaders
        own = leaders.codes.nbytes + leaders.scales.nbytes
        return queries * (own * len(self.shards) + each * probe // self.lists)
