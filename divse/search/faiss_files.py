"""FAISS indexes on disk: trained without elements, and with those of a segment.

index-…/trained.faiss
segment-000000-…/shard_ab12cd34.faiss
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from divse.search import durable
from divse.search.element_index import ElementIndex, Progress, fill
from divse.search.manifest import GalleryError
from divse.search.mapping import MappedFile
from divse.search.segment import Segment
from divse.search.shard import Shard, copy_on_gpus, import_faiss, reason

BUFFER_BYTES = 1 << 20  # of an index file between two calls of FAISS


TRAINED = "trained.faiss"


def read_trained(files: dict[str, MappedFile], spec: str, dim: int) -> Any:
    """Read the trained index."""
    return _read(files[TRAINED])


def write_trained(folder: Path, trained: Any) -> None:
    """Write the trained index durably."""
    _write(folder / TRAINED, trained)


def _write(path: Path, trained: Any) -> None:
    faiss = import_faiss()
    file = durable.open_new(path)
    try:
        faiss.write_index(trained, faiss.PyCallbackIOWriter(file.write, BUFFER_BYTES))
    except BaseException:
        file.close()
        raise
    durable.close_durably(file)


def write_shard(path: Path, trained: Any, segment: Segment, progress: Progress | None) -> None:
    """Write a copy of the trained index that holds a segment's elements."""
    _write(path, fill(trained, segment, progress))


def open_shard(
    file: MappedFile | None, trained: Any, segment: Segment, progress: Progress | None
) -> Shard:
    """Read the shard of a segment; without a file it is filled in memory."""
    if file is None:
        filled = fill(trained, segment, progress)
        return Shard(filled, segment, copy_on_gpus(filled))
    filled = _read(file)
    expected = (segment.entry.elements, segment.embeddings.shape[-1])
    if (filled.ntotal, filled.d) != expected:
        raise GalleryError(
            f"{file.path} is damaged: {filled.ntotal} elements of D={filled.d}, "
            f"the manifest says {expected[0]} of D={expected[1]}"
        )
    return Shard(filled, segment, copy_on_gpus(filled))


def index(trained: Any, shards: tuple[Shard, ...], spec: str) -> ElementIndex:
    """Return the index of these shards."""
    return ElementIndex(shards, spec)


def _read(file: MappedFile) -> Any:
    """Read an index file whose checksum is right: faiss itself trusts what it reads."""
    import pyarrow as pa

    file.verify()
    faiss = import_faiss()
    read = pa.BufferReader(file.data).read
    try:
        return faiss.read_index(faiss.PyCallbackIOReader(read, BUFFER_BYTES))
    except RuntimeError as error:
        raise GalleryError(f"{file.path} cannot be read: {reason(error)}") from None
