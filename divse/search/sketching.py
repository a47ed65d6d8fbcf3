"""What sketches of a gallery are made by: axes, and the leaders of its cells.

Elements x (D,) become sketches (d,) along A (d, D), the d leading axes of their second moment,
turned so that the first points along the mean.

Near elements are near along the other axes, too: <A x, A y> leaves out all of that, and more of it
the more of x and y lies there. So what a sketch has beside its mean is lengthened until the whole
is as long as x. Not so the share of the mean, which is all in the first axis and tells nothing of
the others.

Sketches of large galleries lie in cells (`cells`).
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from divse.search.cells import few_cells_are_enough, find_leaders
from divse.search.coded_sets import CodedSets
from divse.search.element_index import Progress, Trained, sample_elements
from divse.search.index_spec import CELLS_FROM, SketchSpec, sketch_spec
from divse.search.scan import Scoring
from divse.search.segment import Segment
from divse.search.snapshot import Snapshot
from divse.sets import EmbeddingSets, pad_elements

ENERGY = 0.75  # of the elements' squares beside their mean's that the leading axes keep,
ENERGY_IN_CELLS = 0.9  # where a search need not look into all cells: less depth at little cost
AXES_STEP = 16  # their number is a multiple of this, where D is larger
SAMPLED = 1 << 16  # elements
CELLS_A_ROOT = 2  # cells for each of the square root of the sets: leaders take a part of the time
SETS_A_CELL = 32  # sets from which a leader is found
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
        sketching, sketches = _led(sketching.axes, snapshot, cells)
        if asked.dims is None and few_cells_are_enough(sketching.coded_leaders, sketches):
            sketching, _ = _led(_axes(sample, None, ENERGY_IN_CELLS), snapshot, cells)
    return Trained(sketching, str(SketchSpec(sketching.dims, cells, cells > 1)))


def _cells(asked: SketchSpec, sets: int) -> int:
    """How many cells to make of a gallery; 1 is none."""
    if asked.cells is not None:
        return min(asked.cells, sets)
    return int(CELLS_A_ROOT * math.sqrt(sets)) if asked.in_cells and sets >= CELLS_FROM else 1


def _led(axes: np.ndarray, snapshot: Snapshot, cells: int) -> tuple[Sketching, EmbeddingSets]:
    """Find leaders of so many cells, and return the sketches that they were found from."""
    sketches = _sampled(Sketching(axes, None), snapshot, cells * SETS_A_CELL)
    return Sketching(axes, find_leaders(sketches, cells)), sketches


def _sampled(sketching: Sketching, snapshot: Snapshot, count: int) -> EmbeddingSets:
    """Sketches of some sets, drawn without repetition, in no order."""
    drawn = np.random.default_rng(1).permutation(len(snapshot))[:count]
    ordered = np.sort(drawn)
    step = max(1, BLOCK_BYTES // (4 * snapshot.k * snapshot.dim))
    parts = [
        sketching.sketch(snapshot.sets(ordered[first : first + step]))
        for first in range(0, len(ordered), step)
    ]
    return EmbeddingSets.cat(parts).numpy()[np.searchsorted(ordered, drawn)]


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
