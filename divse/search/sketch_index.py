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
from divse.search.proposal import Effort, Proposal
from divse.search.scan import Hits, Scoring, merge
from divse.search.segment import Segment
from divse.search.sketching import Sketching
from divse.sets import EmbeddingSets

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
        segment = self.segment
        excluded = segment.removed if selection is None else selection.excluded(segment)
        topk = min(topk, segment.entry.sets)
        hits = self.sets.search(queries, topk, scoring, excluded, probe)
        own = hits.positions.numpy()
        positions = np.where(own < 0, -1, segment.positions(np.maximum(own, 0)))
        return Hits(hits.scores, torch.from_numpy(positions))


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
        probe = effort.probe if effort.probe < self.lists else None
        hits = None
        for shard in self.shards:
            own = shard.search(sketches, effort.depth, scoring, selection, probe)
            hits = own if hits is None else merge(hits, own, effort.depth)
        assert hits is not None
        candidates = np.sort(hits.positions.numpy(), axis=1)
        limits = np.full((len(queries), queries.k), np.inf, np.float32)
        return Proposal(candidates, limits, self._bytes_read(probe, len(queries)))

    def _bytes_read(self, probe: int | None, queries: int) -> int:
        """Bytes of codes and scales that are looked at, about: as if cells were of one size."""
        each = sum(shard.sets.codes.nbytes + shard.sets.scales.nbytes for shard in self.shards)
        if probe is None:
            return each
        leaders = self.sketching.coded_leaders
        own = leaders.codes.nbytes + leaders.scales.nbytes
        return queries * (own * len(self.shards) + each * probe // self.lists)
