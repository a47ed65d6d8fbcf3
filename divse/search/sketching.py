"""What sketches of a gallery are made by: axes, and the leaders of its cells.

Elements x (D,) become sketches (d,) along A (d, D), the d leading axes of their second moment,
turned so that the first points along the mean.

Near elements are near along the other axes, too: <A x, A y> leaves out all of that, and more of it
the more of x and y lies there. So what a sketch has beside its mean is lengthened until the whole
is as long as x. Not so the share of the mean, which is all in the first axis and tells nothing of
the others.

Cells hold sets that are alike: every set belongs to the cell whose leader is most similar to it.
Leaders are sets themselves and compared as sets, so that no vector has to stand for a whole set.
They are found as by k-means (Lloyd 1982): drawn from the sets, and then each of their elements
becomes the mean of what is nearest to it in each set of the cell, a few times over.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from divse.search.coded_sets import CodedSets
from divse.search.element_index import Progress, Trained, sample_elements
from divse.search.index_spec import SketchSpec, sketch_spec
from divse.search.scan import Scoring
from divse.search.segment import Segment
from divse.search.snapshot import Snapshot
from divse.sets import EmbeddingSets, pad_elements

ENERGY = 0.75  # of the elements' squares beside their mean's that the leading axes keep,
ENERGY_IN_CELLS = 0.9  # where a search need not look into all cells: less depth at little cost
AXES_STEP = 16  # their number is a multiple of this, where D is larger
SAMPLED = 1 << 16  # elements
CELLS_FROM = 8192  # sets: a scan of fewer takes less time than looking for cells
CELLS_A_ROOT = 2  # cells for each of the square root of the sets: leaders take a part of the time
SETS_A_CELL = 32  # sets from which a leader is found
LEADER_ELEMENTS = 8  # at most
ROUNDS = 4  # of moving leaders
TRIED = 128  # sets whose best others are looked for,
NEAREST = 10  # so many of them,
TRIED_SHARE = 16  # in one of so many cells:
FOUND = 0.95  # where this share of them is there, few cells are enough
BLOCK_BYTES = 1 << 25  # of elements in fp32


@dataclass(frozen=True)
class Sketching:
    """Axes (d, D) fp32, and the sketches (C, K, d) fp32 of the sets that lead cells, if any."""

    axes: np.ndarray
    leaders: EmbeddingSets | None

    @property
    def dims(self) -> int:
        """The number of axes (d)."""
        return len(self.axes)

    def sketch(self, sets: EmbeddingSets) -> EmbeddingSets:
        """Return the sketches (n, K, d) of sets (n, K, D), zero in the padding."""
        values, lengths = np.asarray(sets.values, dtype=np.float32), sets.lengths
        if lengths is not None:
            values = values.copy()
            values[np.arange(sets.k) >= np.asarray(lengths)[:, None]] = 0
        return EmbeddingSets(sketched(self.axes, values), lengths)

    def led_by(self, sets: EmbeddingSets, cells: int) -> Sketching:
        """Return the same with leaders of so many cells, found from sets in no order."""
        return Sketching(self.axes, _leaders(self.sketch(sets), cells))

    @cached_property
    def coded_leaders(self) -> CodedSets:
        """The leaders as they are searched."""
        assert self.leaders is not None
        return CodedSets.of(self.leaders)

    def cells_of(self, segment: Segment, progress: Progress | None) -> np.ndarray | None:
        """Return the cell (n,) of every set of a segment's files, None without cells."""
        if self.leaders is None:
            return None
        sets = segment.entry.sets
        found = np.empty(sets, np.int64)
        step = max(1, BLOCK_BYTES // (4 * segment.entry.k * segment.embeddings.shape[-1]))
        for first in range(0, sets, step):
            last = min(first + step, sets)
            sketches = self.sketch(_stored(segment, first, last)).torch()
            hits = self.coded_leaders.search(sketches, 1, Scoring())
            found[first:last] = hits.positions[:, 0].numpy()
            if progress is not None:
                progress(last - first)
        return found


def _stored(segment: Segment, first: int, last: int) -> EmbeddingSets:
    """The sets first..last-1 of the files, removed ones too."""
    if segment.offsets is None:
        return EmbeddingSets(segment.embeddings[first:last])
    offsets = segment.offsets[first : last + 1]
    lengths = np.diff(offsets)
    return EmbeddingSets(
        pad_elements(segment.embeddings[offsets[0] : offsets[-1]], lengths), lengths
    )


def sketched(axes: np.ndarray, elements: np.ndarray) -> np.ndarray:
    """Return the sketches (..., d) of elements (..., D), as long as they are; see above."""
    values = elements @ axes.T
    first, others = values[..., 0], values[..., 1:]
    left = np.einsum("...d,...d", elements, elements) - first * first
    there = np.einsum("...d,...d", others, others)
    others *= np.sqrt(np.maximum(left, 0) / np.where(there > 0, there, 1))[..., None]
    return np.asarray(values)


def train(snapshot: Snapshot, spec: str) -> Trained:
    """Find the axes that a specification asks for, or as many as keep `ENERGY`, and leaders."""
    asked = sketch_spec(spec)
    if asked.dims is not None and asked.dims > snapshot.dim:
        raise ValueError(
            f"index {spec!r}: got {asked.dims} axes, expected at most D={snapshot.dim}"
        )
    sample = sample_elements(snapshot, SAMPLED)
    if not len(sample):
        warnings.warn(
            f"the index {spec!r} has any axes, as the gallery is empty: they find little until it "
            "is compacted with more sets, or gets another index",
            stacklevel=2,
        )
    sketching = Sketching(_axes(sample, asked.dims, ENERGY), None)
    cells = _cells(asked, len(snapshot))
    if cells > 1:
        sets = _sampled_sets(snapshot, cells * SETS_A_CELL)
        sketching = sketching.led_by(sets, cells)
        if asked.dims is None and _few_cells_are_enough(sketching, sets):
            axes = _axes(sample, None, ENERGY_IN_CELLS)
            sketching = Sketching(axes, None).led_by(sets, cells)
    return Trained(sketching, str(SketchSpec(sketching.dims, cells, cells > 1)))


def _cells(asked: SketchSpec, sets: int) -> int:
    """How many cells to make of a gallery; 1 is none."""
    if asked.cells is not None:
        return min(asked.cells, sets)
    return int(CELLS_A_ROOT * math.sqrt(sets)) if asked.in_cells and sets >= CELLS_FROM else 1


def _sampled_sets(snapshot: Snapshot, count: int) -> EmbeddingSets:
    """Some sets, drawn without repetition, in no order."""
    drawn = np.random.default_rng(1).permutation(len(snapshot))[:count]
    sets, back = snapshot.sets(np.sort(drawn)), np.argsort(np.argsort(drawn))
    return sets[back]


def _leaders(sketches: EmbeddingSets, cells: int) -> EmbeddingSets:
    """Find leaders (cells, K, d) for sketched sets (n, K, d), which lie in no order."""
    first = sketches[slice(cells)]
    lengths = first.lengths
    if lengths is not None:
        lengths = np.minimum(np.asarray(lengths), LEADER_ELEMENTS)
    leaders = EmbeddingSets(np.asarray(first.values)[:, :LEADER_ELEMENTS], lengths)
    for _ in range(ROUNDS):
        hits = CodedSets.of(leaders).search(sketches.torch(), 1, Scoring())
        leaders = _moved(leaders, sketches, hits.positions[:, 0].numpy())
    return leaders


def _moved(leaders: EmbeddingSets, sets: EmbeddingSets, cells: np.ndarray) -> EmbeddingSets:
    """Each element of a leader becomes the mean of what is nearest to it in the cell's sets."""
    sums = np.zeros(leaders.values.shape, np.float32)
    step = max(1, BLOCK_BYTES // (8 * sets.k * sets.dim))
    for first in range(0, len(sets), step):
        part, own = sets[slice(first, first + step)], cells[first : first + step]
        values = np.asarray(part.values)
        cosines = np.asarray(leaders.values)[own] @ values.transpose(0, 2, 1)
        if part.lengths is not None:
            past = np.arange(part.k) >= np.asarray(part.lengths)[:, None]
            cosines = np.where(past[:, None], -np.inf, cosines)
        nearest = np.take_along_axis(values, cosines.argmax(axis=2)[..., None], axis=1)
        np.add.at(sums, own, nearest)
    lengths = np.linalg.norm(sums, axis=-1, keepdims=True)
    moved = np.where(lengths > 0, sums / np.where(lengths > 0, lengths, 1), leaders.values)
    if leaders.lengths is not None:
        moved[np.arange(leaders.k) >= np.asarray(leaders.lengths)[:, None]] = 0
    return EmbeddingSets(moved, leaders.lengths)


def _few_cells_are_enough(sketching: Sketching, sets: EmbeddingSets) -> bool:
    """Whether the sets most similar to one another lie in few cells, those nearest to them."""
    sketches = sketching.sketch(sets).torch()
    asked, leaders = sketches[slice(TRIED)], sketching.coded_leaders
    count = min(1 + NEAREST, len(sets))
    best = CodedSets.of(sketches.numpy()).search(asked, count, Scoring()).positions.numpy()
    others = best[best != np.arange(len(asked))[:, None]]
    asking = np.nonzero(best != np.arange(len(asked))[:, None])[0]
    cells = leaders.search(sketches, 1, Scoring()).positions[:, 0].numpy()
    near = leaders.search(asked, max(1, len(leaders) // TRIED_SHARE), Scoring()).positions.numpy()
    return bool((near[asking] == cells[others][:, None]).any(axis=1).mean() >= FOUND)


def _axes(sample: np.ndarray, dims: int | None, energy: float) -> np.ndarray:
    """The leading axes (d, D) of sampled elements (n, D): `dims`, or as many as keep `energy`."""
    moment = sample.T.astype(np.float64) @ sample
    total = sample.sum(axis=0, dtype=np.float64)
    values, vectors = np.linalg.eigh(moment)
    if dims is None:
        dims = _enough(values[::-1], total @ total / max(1, len(sample)), energy)
    axes = _turned(vectors[:, ::-1][:, :dims].T, total)
    return np.ascontiguousarray(axes, np.float32)


def _enough(values: np.ndarray, of_mean: float, energy: float) -> int:
    """How many of the leading axes keep `energy` beside the mean's; `values` (D,) descend."""
    kept = np.cumsum(np.maximum(values, 0))
    left = (1 - energy) * max(0.0, kept[-1] - of_mean)
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
