"""Sketches on disk: the axes, and in each segment one array of bytes.

index-…/trained.npy                  (d, D) fp32
segment-000000-…/shard_ab12cd34.npy  int8: all scales as fp32, all codes (`sketch_lanes`)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from divse.search import durable
from divse.search.element_index import Progress
from divse.search.index_spec import sketch_dims
from divse.search.mapping import MappedFile, as_array
from divse.search.segment import Segment
from divse.search.sketch_index import SketchIndex, SketchShard, sketched
from divse.search.sketch_lanes import LANES, STEP, Lanes
from divse.similarity.certified import encode

BLOCK_BYTES = 1 << 25  # of elements in fp32


def read_trained(file: MappedFile, spec: str, dim: int) -> np.ndarray:
    """Read the axes (d, D)."""
    file.verify()
    return as_array(file, (sketch_dims(spec) or 0, dim), "float32")


def write_trained(path: Path, axes: np.ndarray) -> None:
    """Write the axes durably."""
    file = durable.open_new(path)
    try:
        np.lib.format.write_array(file, axes, allow_pickle=False)
    except BaseException:
        file.close()
        raise
    durable.close_durably(file)


def write_shard(path: Path, axes: np.ndarray, segment: Segment, progress: Progress | None) -> None:
    """Write the sketches of a segment durably, without having them all in memory."""
    lanes = Lanes.of(segment)
    file = durable.open_new(path)
    try:
        header = {"descr": "|i1", "fortran_order": False, "shape": (_bytes(lanes, len(axes)),)}
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
        for first, codes, scales in _sketched(lanes, axes, segment, progress):
            for place, part in zip(_places(lanes, len(axes), first), (scales, codes), strict=True):
                file.seek(start + place)
                file.write(part.data)
    except BaseException:
        file.close()
        raise
    durable.close_durably(file)


def open_shard(
    file: MappedFile | None, axes: np.ndarray, segment: Segment, progress: Progress | None
) -> SketchShard:
    """Map the sketches of a segment; without a file they are made in memory."""
    lanes, dims = Lanes.of(segment), len(axes)
    shape, size = lanes.shape(dims), _bytes(lanes, dims)
    if file is None:
        stored = np.empty(size, dtype=np.int8)
        for first, codes, scales in _sketched(lanes, axes, segment, progress):
            for place, part in zip(_places(lanes, dims, first), (scales, codes), strict=True):
                stored[place : place + part.nbytes] = part.view(np.int8).reshape(-1)
    else:
        stored = as_array(file, (size,), "int8")
    begin = _places(lanes, dims, 0)[1]
    scales = stored[:begin].view(np.float32).reshape(shape[0], LANES)
    return SketchShard(stored[begin:].reshape(shape), scales, lanes, dims, segment)


def _bytes(lanes: Lanes, dims: int) -> int:
    return _places(lanes, dims, lanes.shape(dims)[0])[1]


def _places(lanes: Lanes, dims: int, slot: int) -> tuple[int, int]:
    """Bytes before the scales and the codes of a slot."""
    slots, *step = lanes.shape(dims)
    return 4 * LANES * slot, 4 * LANES * slots + math.prod(step) * slot


def index(axes: np.ndarray, shards: tuple[SketchShard, ...], spec: str) -> SketchIndex:
    """Return the index of these shards."""
    return SketchIndex(axes, shards, spec)


def _sketched(
    lanes: Lanes, axes: np.ndarray, segment: Segment, progress: Progress | None
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """First slot, codes (m, steps, 16, 4) and scales (m, 16) of groups after groups of sets."""
    elements = segment.embeddings.reshape(-1, segment.embeddings.shape[-1])
    _, steps, *_ = lanes.shape(len(axes))
    for block in lanes.blocks(max(1, BLOCK_BYTES // (4 * elements.shape[1]))):
        part = sketched(axes, np.asarray(elements[block.rows], dtype=np.float32))
        found, lengths, _ = encode(torch.from_numpy(part)[:, None])
        codes = np.zeros((block.slots, LANES, steps * STEP), np.int8)
        codes[block.slot, block.lane, : len(axes)] = found[:, 0].numpy()
        scales = np.zeros((block.slots, LANES), np.float32)
        scales[block.slot, block.lane] = lengths[:, 0].numpy()
        steps_first = codes.reshape(block.slots, LANES, steps, STEP).transpose(0, 2, 1, 3)
        yield block.first, np.ascontiguousarray(steps_first), scales
        if progress is not None:
            progress(block.sets)
