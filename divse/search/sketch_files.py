"""Sketches on disk: what they are made by, and in each segment one array of bytes.

index-…/trained.npy                  (d, D) fp32: the axes
index-…/leaders.npy                  (elements, d) fp32: the leaders of the cells, if there are any,
index-…/leader_offsets.npy           (C + 1,) int64: and where each begins
segment-000000-…/shard_ab12cd34.npy  int8: with cells their begins (C + 1,) int64 and the order (n,)
                                     int32; all scales as fp32, all codes (`sketch_lanes`)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from divse.search import durable
from divse.search.coded_sets import Cells, CodedSets, encoded
from divse.search.element_index import Progress
from divse.search.index_spec import sketch_spec
from divse.search.manifest import GalleryError
from divse.search.mapping import MappedFile, as_array, payload
from divse.search.segment import Segment
from divse.search.sketch_index import SketchIndex, SketchShard
from divse.search.sketch_lanes import LANES, Lanes, in_order
from divse.search.sketching import BLOCK_BYTES, Sketching, sketched
from divse.sets import EmbeddingSets, pad_elements, unpad_elements

TRAINED, LEADERS, OFFSETS = "trained.npy", "leaders.npy", "leader_offsets.npy"
LINE = 64  # bytes of a cache line


def read_trained(files: dict[str, MappedFile], spec: str, dim: int) -> Sketching:
    """Read the axes (d, D) and the leaders."""
    asked = sketch_spec(spec)
    names = [TRAINED, *((LEADERS, OFFSETS) if asked.in_cells else ())]
    for name in names:
        if name not in files:
            raise GalleryError(f"the index {spec} has no {name}: build it again")
        files[name].verify()
    dims = asked.dims or 0
    axes = as_array(files[TRAINED], (dims, dim), "float32")
    if not asked.in_cells:
        return Sketching(axes, None)
    offsets = as_array(files[OFFSETS], ((asked.cells or 0) + 1,), "int64")
    lengths = np.diff(offsets)
    if not len(lengths) or offsets[0] != 0 or not (offsets[1:] > offsets[:-1]).all():
        raise GalleryError(f"{files[OFFSETS].path} is damaged: its offsets make no sets")
    elements = as_array(files[LEADERS], (int(offsets[-1]), dims), "float32")
    even = bool((lengths == lengths[0]).all())
    leaders = EmbeddingSets(pad_elements(elements, lengths), None if even else lengths)
    return Sketching(axes, leaders)


def write_trained(folder: Path, sketching: Sketching) -> None:
    """Write the axes and the leaders durably."""
    _write(folder / TRAINED, sketching.axes)
    if sketching.leaders is None:
        return
    elements, lengths = unpad_elements(sketching.leaders)
    _write(folder / LEADERS, elements)
    _write(folder / OFFSETS, np.concatenate([[0], np.cumsum(lengths)]))


def _write(path: Path, array: np.ndarray) -> None:
    file = durable.open_new(path)
    try:
        np.lib.format.write_array(file, array, allow_pickle=False)
    except BaseException:
        file.close()
        raise
    durable.close_durably(file)


def write_shard(
    path: Path, sketching: Sketching, segment: Segment, progress: Progress | None
) -> None:
    """Write the sketches of a segment durably, without having them all in memory."""
    layout = _Layout.of(sketching, segment, progress)
    file = durable.open_new(path)
    try:
        header = {"descr": "|i1", "fortran_order": False, "shape": (layout.size,)}
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
        for place, part in layout.parts(sketching, segment, progress):
            file.seek(start + place)
            file.write(part.data)
        file.truncate(start + layout.size)
    except BaseException:
        file.close()
        raise
    durable.close_durably(file)


def open_shard(
    file: MappedFile | None, sketching: Sketching, segment: Segment, progress: Progress | None
) -> SketchShard:
    """Map the sketches of a segment; without a file they are made in memory."""
    if file is None:
        layout = _Layout.of(sketching, segment, progress)
        stored = np.empty(layout.size, dtype=np.int8)
        for place, part in layout.parts(sketching, segment, progress):
            stored[place : place + part.nbytes] = part.view(np.int8).reshape(-1)
    else:
        stored = as_array(file, (payload(file),), "int8")
        try:
            layout = _Layout.read(stored, sketching, segment)
        except (ValueError, IndexError) as error:
            raise GalleryError(f"{file.path} is damaged: {error}") from None
    return SketchShard(layout.sets(stored, sketching), segment)


def index(sketching: Sketching, shards: tuple[SketchShard, ...], spec: str) -> SketchIndex:
    """Return the index of these shards."""
    return SketchIndex(sketching, shards, spec)


@dataclass(frozen=True)
class _Layout:
    """Where everything lies in the bytes of a shard; `begins` of its cells, if it has any."""

    lanes: Lanes
    dims: int
    begins: np.ndarray | None

    @classmethod
    def of(cls, sketching: Sketching, segment: Segment, progress: Progress | None) -> _Layout:
        """Find the cell of every set."""
        cells, lengths, begins = sketching.cells_of(segment, progress), _lengths(segment), None
        if cells is not None:
            counts = np.bincount(cells, minlength=len(sketching.coded_leaders))
            begins = np.concatenate([[0], np.cumsum(counts)])
        return cls(Lanes.of(lengths, in_order(lengths, cells)), sketching.dims, begins)

    @classmethod
    def read(cls, stored: np.ndarray, sketching: Sketching, segment: Segment) -> _Layout:
        """Read the begins of the cells and the order of the sets."""
        lengths, begins = _lengths(segment), None
        if sketching.leaders is None:
            order = in_order(lengths, None)
        else:
            cut = 8 * (len(sketching.leaders) + 1)
            begins = stored[:cut].view(np.int64)
            order = stored[cut : cut + 4 * len(lengths)].view(np.int32)
            _check_cells(begins, order, len(lengths))
        layout = cls(Lanes.of(lengths, order), sketching.dims, begins)
        if layout.size != len(stored):
            raise ValueError(f"it has {len(stored)} bytes, its sets take {layout.size}")
        return layout

    @property
    def _head(self) -> int:
        """Bytes before the scales: those of whole cache lines."""
        if self.begins is None:
            return 0
        return -(-(8 * len(self.begins) + 4 * len(self.lanes.lengths)) // LINE) * LINE

    def _places(self, slot: int) -> tuple[int, int]:
        """Bytes before the scales and the codes of a slot."""
        slots, *step = self.lanes.shape(self.dims)
        codes = self._head + 4 * LANES * slots
        return self._head + 4 * LANES * slot, codes + math.prod(step) * slot

    @property
    def size(self) -> int:
        """All bytes."""
        return self._places(self.lanes.shape(self.dims)[0])[1]

    def parts(
        self, sketching: Sketching, segment: Segment, progress: Progress | None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """All that is stored, and after how many bytes it lies."""
        if self.begins is not None:
            assert self.lanes.order is not None, "cells have an order"
            yield 0, self.begins
            yield self.begins.nbytes, self.lanes.order
            progress = None  # it has heard of all sets while their cells were found
        elements = segment.embeddings.reshape(-1, segment.embeddings.shape[-1])
        for block in self.lanes.blocks(max(1, BLOCK_BYTES // (4 * elements.shape[1]))):
            part = np.asarray(elements[block.rows], dtype=np.float32)
            codes, scales = encoded(sketched(sketching.axes, part), block)
            yield from zip(self._places(block.first), (scales, codes), strict=True)
            if progress is not None:
                progress(block.sets)

    def sets(self, stored: np.ndarray, sketching: Sketching) -> CodedSets:
        """View the bytes as sets."""
        shape, (scales, codes) = self.lanes.shape(self.dims), self._places(0)
        cells = None if self.begins is None else Cells(sketching.coded_leaders, self.begins)
        return CodedSets(
            stored[codes:].reshape(shape),
            stored[scales:codes].view(np.float32).reshape(shape[0], LANES),
            self.lanes,
            self.dims,
            cells,
        )


def _check_cells(begins: np.ndarray, order: np.ndarray, sets: int) -> None:
    """Refuse begins that do not cut the sets, and an order that is none."""
    ascending = (begins[1:] >= begins[:-1]).all()  # their differences may wrap
    if not ascending or len(begins) < 2 or begins[0] != 0 or begins[-1] != sets:
        raise ValueError(f"its cells do not divide {sets} sets")
    named = np.zeros(sets, dtype=bool)
    inside = len(order) == sets and order.min() >= 0 and order.max() < sets
    if inside:
        named[order] = True
    if not named.all():
        raise ValueError(f"its order does not name each of {sets} sets once")


def _lengths(segment: Segment) -> np.ndarray:
    """Elements of each set of the files."""
    if segment.offsets is None:
        return np.full(segment.entry.sets, segment.entry.k)
    return np.diff(segment.offsets)
