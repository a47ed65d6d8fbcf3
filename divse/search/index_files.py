"""The element index on disk: a trained index in a folder of its own, a shard in each segment.

    index-…/trained.faiss                trained, without elements
    segment-000000-…/shard_ab12cd34.faiss  the same with the elements of the segment

The manifest names them all, so index and sets change together. A segment without a shard (added
where faiss was not installed) gets one in memory.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from divse.search import durable
from divse.search.element_index import ElementIndex, Progress, Trained, fill, train
from divse.search.manifest import TRAINED, FileEntry, GalleryError, IndexEntry, SegmentEntry
from divse.search.mapping import MappedFile, map_file
from divse.search.segment import Segment
from divse.search.shard import Shard, copy_on_gpus, import_faiss, reason
from divse.search.snapshot import Snapshot

BUFFER_BYTES = 1 << 20  # of an index file between two calls of FAISS


def has_index(snapshot: Snapshot) -> bool:
    """Whether an index is stored in the gallery."""
    return snapshot.manifest.index is not None


def open_index(snapshot: Snapshot, progress: Progress | None = None) -> ElementIndex:
    """Return the stored index, what it lacks built in memory; a whole new one if none is stored."""
    stored = snapshot.manifest.index
    if stored is None:
        trained, spec, _ = train(snapshot)
    else:
        trained, spec = _read(snapshot.index_files[TRAINED]), stored.spec
    shards = []
    for segment in snapshot.segments:
        index = None if stored is None else _read_shard(stored, segment)
        index = index or fill(trained, segment, progress)
        shards.append(Shard(index, segment, copy_on_gpus(index)))
    return ElementIndex(tuple(shards), spec)


def read_trained(gallery: Path, stored: IndexEntry) -> Any:
    """Read the trained index."""
    return _read(map_file(gallery / stored.name / TRAINED, stored.files[TRAINED]))


def _read_shard(stored: IndexEntry, segment: Segment) -> Any:
    """The shard of a segment, or None if it has none."""
    file = segment.files.get(stored.shard)
    if file is None:
        return None
    index = _read(file)
    expected = (segment.entry.elements, segment.embeddings.shape[-1])
    if (index.ntotal, index.d) != expected:
        raise GalleryError(
            f"{file.path} is damaged: {index.ntotal} elements of D={index.d}, "
            f"the manifest says {expected[0]} of D={expected[1]}"
        )
    return index


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


def write_trained(gallery: Path, trained: Trained) -> IndexEntry:
    """Store a trained index, which nothing names yet."""
    name = f"index-{secrets.token_hex(4)}"
    durable.make_folder(gallery / name)
    try:
        files = {TRAINED: _write(gallery / name / TRAINED, trained.index)}
    except BaseException:
        durable.remove(gallery / name)
        raise
    durable.sync_folder(gallery)
    return IndexEntry(name, trained.spec, files, trained.automatic)


def write_shard(
    gallery: Path,
    stored: IndexEntry,
    trained: Any,
    segment: Segment,
    progress: Progress | None = None,
) -> SegmentEntry:
    """Store the shard of a segment; return the segment's entry with it."""
    name = stored.shard
    filled = fill(trained, segment, progress)
    return segment.entry.with_file(name, _write(gallery / segment.entry.name / name, filled))


def _write(path: Path, index: Any) -> FileEntry:
    faiss = import_faiss()
    file = durable.open_new(path)
    try:
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write, BUFFER_BYTES))
    except BaseException:
        file.close()
        durable.remove(path)
        raise
    durable.close_durably(file)
    durable.sync_folder(path.parent)
    return FileEntry(path.stat().st_size, durable.checksum_file(path))
