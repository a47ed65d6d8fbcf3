"""Sketches on disk: the axes, and in each segment one array of bytes.

index-…/trained.npy                  (d, D) fp32
segment-000000-…/shard_ab12cd34.npy  (elements * (4 + d),) int8: all scales as fp32, all codes
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from divse.search import durable
from divse.search.element_index import Progress
from divse.search.index_spec import sketch_dims
from divse.search.mapping import MappedFile, as_array
from divse.search.segment import Segment
from divse.search.sketch_index import SketchIndex, SketchShard
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
    elements, dims = segment.entry.elements, len(axes)
    file = durable.open_new(path)
    try:
        header = {"descr": "|i1", "fortran_order": False, "shape": (elements * (4 + dims),)}
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
        for first, codes, scales in _sketched(axes, segment, progress):
            for offset, part in ((4 * first, scales), (4 * elements + dims * first, codes)):
                file.seek(start + offset)
                file.write(np.ascontiguousarray(part).data)
    except BaseException:
        file.close()
        raise
    durable.close_durably(file)


def open_shard(
    file: MappedFile | None, axes: np.ndarray, segment: Segment, progress: Progress | None
) -> SketchShard:
    """Map the sketches of a segment; without a file they are made in memory."""
    elements, dims = segment.entry.elements, len(axes)
    if file is None:
        stored = np.empty(elements * (4 + dims), dtype=np.int8)
        for first, codes, scales in _sketched(axes, segment, progress):
            count = len(scales)
            stored[4 * first : 4 * (first + count)] = scales.view(np.int8)
            place = 4 * elements + dims * first
            stored[place : place + dims * count] = codes.reshape(-1)
    else:
        stored = as_array(file, (elements * (4 + dims),), "int8")
    shape = segment.embeddings.shape[:-1]
    scales = stored[: 4 * elements].view(np.float32).reshape(shape)
    return SketchShard(stored[4 * elements :].reshape(*shape, dims), scales, segment)


def index(axes: np.ndarray, shards: tuple[SketchShard, ...], spec: str) -> SketchIndex:
    """Return the index of these shards."""
    return SketchIndex(axes, shards, spec)


def _sketched(
    axes: np.ndarray, segment: Segment, progress: Progress | None
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """First element, codes (m, d) and scales (m,) of block after block of a segment's elements."""
    elements = segment.embeddings.reshape(-1, segment.embeddings.shape[-1])
    step, done = max(1, BLOCK_BYTES // (4 * elements.shape[1])), 0
    for first in range(0, len(elements), step):
        part = np.asarray(elements[first : first + step], dtype=np.float32) @ axes.T
        codes, scales, _ = encode(torch.from_numpy(part)[:, None])
        yield first, codes[:, 0].numpy(), scales[:, 0].numpy()
        if progress is not None:
            sets = segment.sets * (first + len(part)) // len(elements)
            progress(sets - done)
            done = sets
