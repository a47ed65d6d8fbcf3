"""Sketches: the sets in few dimensions and int8, scored as wholes, to propose candidates.

Elements x (D,) become sketches (d,) along A (d, D), the d leading axes of their second moment,
turned so that the first points along the mean, in int8 codes with a scale
(`divse.similarity.quantise`). A scan scores every sketched set against the sketched query by the
similarity that was asked for, so that what counts is how the whole set matches; the nearest
elements, which `ElementIndex` goes by, may belong to thousands of sets that share one topic. A scan
reads d + 4 bytes an element.

Near elements are near along the other axes, too: <A x, A y> leaves out all of that, and more of it
the more of x and y lies there. So what a sketch has beside its mean is lengthened until the whole
is as long as x. Not so the share of the mean, which is all in the first axis and tells nothing of
the others.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from divse.search.element_index import Trained, sample_elements
from divse.search.filters import Selection
from divse.search.index_spec import sketch_dims
from divse.search.proposal import Effort, Proposal
from divse.search.scan import Hits, Scoring, exact_scan, merge
from divse.search.segment import Segment
from divse.search.sketch_lanes import Lanes
from divse.search.snapshot import Snapshot
from divse.search.stored_scan import serves
from divse.sets import EmbeddingSets
from divse.similarity import certified, dispatch, native
from divse.similarity.inputs import read_parameters, read_sets
from divse.similarity.table import get_similarity

ENERGY = 0.75  # of the elements' squares beside their mean's that the leading axes keep
AXES_STEP = 16  # their number is a multiple of this, where D is larger
SAMPLED = 1 << 16  # elements
LEAST_DEPTH = 1024  # sets of a query that are scored exactly,
DEPTH_SHARE = 256  # or one in so many, if that is more,
DEPTH_A_HIT = 32  # or so many for each of the best that are asked for
BLOCK_BYTES = 1 << 25  # of sketches in fp32, where no kernel reads the codes


def train(snapshot: Snapshot, spec: str) -> Trained:
    """Find the axes (d, D) fp32 for "Sketch<d>", or for "Sketch" as many as keep `ENERGY`."""
    dims = sketch_dims(spec)
    if dims is not None and dims > snapshot.dim:
        raise ValueError(f"index {spec!r}: got {dims} axes, expected at most D={snapshot.dim}")
    sample = sample_elements(snapshot, SAMPLED)
    if not len(sample):
        warnings.warn(
            f"the index {spec!r} has any axes, as the gallery is empty: they find little until it "
            "is compacted with more sets, or gets another index",
            stacklevel=2,
        )
    moment = sample.T.astype(np.float64) @ sample
    total = sample.sum(axis=0, dtype=np.float64)
    values, vectors = np.linalg.eigh(moment)
    if dims is None:
        dims = _enough(values[::-1], total @ total / max(1, len(sample)))
    axes = _turned(vectors[:, ::-1][:, :dims].T, total)
    return Trained(np.ascontiguousarray(axes, np.float32), f"Sketch{dims}")


def _enough(values: np.ndarray, of_mean: float) -> int:
    """How many of the leading axes keep `ENERGY` beside the mean's; `values` (D,) descend."""
    kept = np.cumsum(np.maximum(values, 0))
    left = (1 - ENERGY) * max(0.0, kept[-1] - of_mean)
    dims = 1 + int(np.searchsorted(kept, kept[-1] - left))
    return min(len(values), -(-dims // AXES_STEP) * AXES_STEP)


def _turned(axes: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return axes (d, D) of the same span; all that a mean (D,) has there is in the first."""
    along = axes @ mean
    if not along.any():
        return axes
    along /= np.linalg.norm(along)
    along[0] += 1 if along[0] >= 0 else -1  # a reflection, up to the sign of the first
    return np.asarray(axes - np.outer(along, 2 / (along @ along) * (along @ axes)))


def sketched(axes: np.ndarray, elements: np.ndarray) -> np.ndarray:
    """Return the sketches (..., d) of elements (..., D), as long as they are; see above."""
    values = elements @ axes.T
    first, others = values[..., :1], values[..., 1:]
    squares = np.square(elements).sum(axis=-1, keepdims=True) - np.square(first)
    lengths = np.linalg.norm(others, axis=-1, keepdims=True)
    others *= np.sqrt(np.maximum(squares, 0)) / np.where(lengths > 0, lengths, 1)
    return np.asarray(values)


@dataclass(frozen=True)
class SketchShard:
    """The sketches of one segment along d axes, as `lanes` says where they lie."""

    codes: np.ndarray
    scales: np.ndarray
    lanes: Lanes
    dims: int
    segment: Segment

    def search(
        self, queries: EmbeddingSets, topk: int, scoring: Scoring, selection: Selection | None
    ) -> Hits:
        """Return the best sets by their sketches, estimates and gallery's positions (B, <= topk).

        `queries` (B, K, d) are sketches. -inf and -1 where fewer sets may be found.
        """
        segment = self.segment
        excluded = self._in_places(
            segment.removed if selection is None else selection.excluded(segment)
        )
        topk = min(topk, segment.entry.sets)
        if scoring.impl == "triton":  # sketches lie in the host's memory, whoever scores the sets
            scoring = replace(scoring, impl="auto")
        if serves(queries, scoring) and scoring.similarity in certified.SIMILARITIES:
            hits = self._by_kernel(queries, topk, scoring, excluded)
        else:
            mask = None if excluded is None else torch.from_numpy(self._bits(excluded) == 1)
            hits = exact_scan(queries, self._blocks(), topk, scoring, excluded=mask)
        places = hits.positions.numpy()
        own = places if self.lanes.order is None else self.lanes.order[np.maximum(places, 0)]
        positions = np.where(places < 0, -1, segment.positions(np.maximum(own, 0)))
        return Hits(hits.scores, torch.from_numpy(positions))

    def _bits(self, packed: np.ndarray) -> np.ndarray:
        return np.unpackbits(packed, count=self.segment.entry.sets, bitorder="little")

    def _in_places(self, excluded: np.ndarray | None) -> np.ndarray | None:
        """A bitmap of the segment's sets in the order of their places."""
        if excluded is None or self.lanes.order is None:
            return excluded
        return np.packbits(self._bits(excluded)[self.lanes.order], bitorder="little")

    def _by_kernel(
        self, queries: EmbeddingSets, topk: int, scoring: Scoring, excluded: np.ndarray | None
    ) -> Hits:
        dispatch.calls["native.estimates"] += 1
        similarity = get_similarity(scoring.similarity)
        lengths = None if self.lanes.order is None else self.lanes.lengths
        return Hits(
            *native.estimates(
                read_sets(queries, None, "queries"),
                (self.codes, self.scales, self.segment.entry.sets, lengths),
                topk,
                similarity,
                read_parameters(similarity, scoring.alpha, scoring.log_mean, scoring.parameters),
                excluded,
            )
        )

    def _blocks(self) -> Iterator[tuple[int, EmbeddingSets]]:
        """The sketches as sets in fp32, in the order of their places, removed ones too."""
        first = 0
        elements = max(1, BLOCK_BYTES // (4 * self.dims))
        for sets in self.lanes.decode(self.codes, self.scales, self.dims, elements):
            yield first, sets.torch()
            first += len(sets)


@dataclass(frozen=True)
class SketchIndex:
    """The sketches of all segments of one state of a gallery, along the same axes (d, D)."""

    axes: np.ndarray
    shards: tuple[SketchShard, ...]
    spec: str

    lists = 1

    def first_effort(self, topk: int, passing: float) -> Effort:
        """One round: nearly all of its time is the scan, which is the same at any depth."""
        return Effort(max(LEAST_DEPTH, self._sets // DEPTH_SHARE, DEPTH_A_HIT * topk), 1, 1)

    def fit(self, depth: int, topk: int) -> int:
        """At least as many sets as are asked for: another round would be another scan."""
        return min(max(depth, topk), self._sets)

    @property
    def _sets(self) -> int:
        return sum(shard.segment.sets for shard in self.shards)

    def is_exhaustive(self, probe: int) -> bool:
        """No: what the other axes add to a cosine is not known."""
        return False

    def propose(
        self, queries: EmbeddingSets, scoring: Scoring, effort: Effort, selection: Selection | None
    ) -> Proposal:
        """Propose the `depth` best sets by their sketches."""
        values, lengths = self._sketches(queries)
        sketched = EmbeddingSets(torch.from_numpy(values), lengths)
        hits = None
        for shard in self.shards:
            own = shard.search(sketched, effort.depth, scoring, selection)
            hits = own if hits is None else merge(hits, own, effort.depth)
        assert hits is not None
        candidates = np.sort(hits.positions.numpy(), axis=1)
        read = sum(shard.codes.nbytes + shard.scales.nbytes for shard in self.shards)
        return Proposal(candidates, np.full(values.shape[:2], np.inf, np.float32), read)

    def _sketches(self, queries: EmbeddingSets) -> tuple[np.ndarray, torch.Tensor | None]:
        """Queries (B, K, d) along the axes, zero in the padding, and their lengths."""
        sets = queries.numpy()
        values = np.array(sets.values, dtype=np.float32)
        if sets.lengths is None:
            return sketched(self.axes, values), None
        lengths = np.asarray(sets.lengths)
        values[np.arange(values.shape[1]) >= lengths[:, None]] = 0
        return sketched(self.axes, values), torch.from_numpy(lengths)
