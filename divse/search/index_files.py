"""The prefilter's index on disk: what was trained, in a folder of its own, a shard in each segment.

The manifest names them all, so index and sets change together. A segment without a shard (added
where faiss was not installed) gets one in memory. `faiss_files` and `sketch_files` read and write
the two kinds.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from types import ModuleType
from typing import Any

from divse.search import durable, element_index, faiss_files, sketch_files, sketching
from divse.search.element_index import Progress, Trained
from divse.search.index_spec import automatic_spec, check_spec, is_sketch
from divse.search.manifest import FileEntry, IndexEntry, SegmentEntry
from divse.search.mapping import map_files
from divse.search.proposal import PrefilterIndex
from divse.search.segment import Segment
from divse.search.snapshot import Snapshot


def has_index(snapshot: Snapshot) -> bool:
    """Whether an index is stored in the gallery."""
    return snapshot.manifest.index is not None


def train(snapshot: Snapshot, spec: str | None = None) -> Trained:
    """Train an index without elements; without a specification the one for the gallery's size."""
    manifest = snapshot.manifest
    asked = automatic_spec(manifest.elements, manifest.sets) if spec is None else spec
    check_spec(asked)
    kind = sketching if is_sketch(asked) else element_index
    trained: Trained = kind.train(snapshot, asked)
    return trained


def open_index(snapshot: Snapshot, progress: Progress | None = None) -> PrefilterIndex:
    """Return the stored index, what it lacks built in memory; a whole new one if none is stored."""
    stored = snapshot.manifest.index
    if stored is None:
        trained, spec = train(snapshot)
    else:
        spec = stored.spec
        trained = _kind(spec).read_trained(snapshot.index_files, spec, snapshot.dim)
    kind = _kind(spec)
    shards = []
    for segment in snapshot.segments:
        shard = None if stored is None else segment.files.get(stored.shard)
        shards.append(kind.open_shard(shard, trained, segment, progress))
    index: PrefilterIndex = kind.index(trained, tuple(shards), spec)
    return index


def read_trained(gallery: Path, stored: IndexEntry, dim: int) -> Any:
    """Read what was trained."""
    files = map_files(gallery / stored.name, stored.files)
    return _kind(stored.spec).read_trained(files, stored.spec, dim)


def write_trained(gallery: Path, trained: Trained, asked: str | None) -> IndexEntry:
    """Store what was trained, which nothing names yet; `asked` is the specification given."""
    entry = IndexEntry(f"index-{secrets.token_hex(4)}", trained.spec, {}, asked)
    folder = gallery / entry.name
    durable.make_folder(folder)
    try:
        _kind(trained.spec).write_trained(folder, trained.index)
        for path in sorted(folder.iterdir()):
            entry.files[path.name] = _settled(path)
    except BaseException:
        durable.remove(folder)
        raise
    durable.sync_folder(gallery)
    return entry


def write_shard(
    gallery: Path,
    stored: IndexEntry,
    trained: Any,
    segment: Segment,
    progress: Progress | None = None,
) -> SegmentEntry:
    """Store the shard of a segment; return the segment's entry with it."""
    path = gallery / segment.entry.name / stored.shard
    try:
        _kind(stored.spec).write_shard(path, trained, segment, progress)
        return segment.entry.with_file(path.name, _settled(path))
    except BaseException:
        durable.remove(path)
        raise


def _kind(spec: str) -> ModuleType:
    return sketch_files if is_sketch(spec) else faiss_files


def _settled(path: Path) -> FileEntry:
    """Flush a new file's name and return its entry."""
    durable.sync_folder(path.parent)
    return FileEntry(path.stat().st_size, durable.checksum_file(path))
