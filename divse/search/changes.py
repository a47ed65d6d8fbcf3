"""Changes of a gallery: each takes it from one committed state to the next, or leaves it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from divse.search import durable
from divse.search.index_files import train, write_shard, write_trained
from divse.search.lock import LOCK_NAME, FolderGone, writer_lock
from divse.search.manifest import GalleryError, Manifest
from divse.search.rows import ID, as_ids
from divse.search.snapshot import Snapshot
from divse.search.writer import Writer, check_target, replace_state, writing
from divse.search.writing import NewRows, Progress, segment_writer, write_segment

_ATTEMPTS = 10  # to make a folder that others, whose builds fail, remove


def create(folder: Path, empty: Manifest, new: NewRows, overwrite: bool) -> Snapshot:
    """Write the first segment of a new gallery, or of one that replaces another."""
    check_target(folder, overwrite)
    for _ in range(_ATTEMPTS):
        durable.make_folders(folder)
        with contextlib.suppress(FolderGone), writer_lock(folder):
            return _create(folder, empty, new, overwrite)
    raise GalleryError(f"{folder} is removed again and again by another process")


def _create(folder: Path, empty: Manifest, new: NewRows, overwrite: bool) -> Snapshot:
    old = check_target(folder, overwrite)
    if old is not None:
        durable.sync_folder(folder)
        empty = replace(empty, generation=old.generation)
    try:
        manifest, entry = write_segment(folder, empty, new)
        after = manifest.after([entry])
        replace_state(folder, after, [folder / entry.name])
        return Snapshot(folder, after)
    finally:
        _remove_if_bare(folder)


def _remove_if_bare(folder: Path) -> None:
    """Remove the folder of a build that failed, if it holds nothing but the lock."""
    if [path.name for path in folder.iterdir()] == [LOCK_NAME]:
        durable.remove(folder / LOCK_NAME)
        with contextlib.suppress(OSError):
            folder.rmdir()


def add(folder: Path, new: NewRows) -> Snapshot:
    """Append a segment."""
    with writing(folder) as writer:
        now = writer.now.manifest
        if new.ids is None and now.id_type != "int64":
            raise ValueError("this gallery has string ids: give ids for the new sets")
        manifest, entry = writer.add(now, new, writer.now.id_column)
        return writer.commit(manifest.after([*manifest.segments, entry]))


def remove(folder: Path, ids: Iterable[Any], missing_ok: bool) -> Snapshot:
    """Remove the sets with these ids."""
    with writing(folder) as writer:
        removed = np.flatnonzero(writer.now.with_ids(ids, missing_ok=missing_ok))
        if not len(removed):
            return writer.now
        return writer.commit(writer.now.manifest.after(writer.without(removed)))


def update(folder: Path, new: NewRows, insert: bool) -> Snapshot:
    """Replace the sets with these ids; with `insert` new ids are added as well."""
    import pyarrow.compute as pc

    with writing(folder) as writer:
        now = writer.now
        new.ids = as_ids(new.ids, now.schema.field(ID).type)
        removed = np.flatnonzero(now.with_ids(new.ids, missing_ok=insert))
        kept = now.id_column.filter(pc.invert(pc.is_in(now.id_column, value_set=new.ids)))
        manifest, entry = writer.add(now.manifest, new, kept)
        before = writer.without(removed) if len(removed) else list(now.manifest.segments)
        before = [segment for segment in before if segment.live_sets]
        return writer.commit(manifest.after([*before, entry]))


def compact(folder: Path, progress: Progress | None) -> Snapshot:
    """Rewrite the sets that are left as one segment, in the same order; train its index anew."""
    with writing(folder) as writer:
        now = writer.now
        whole = len(now.segments) == 1 and now.segments[0].entry.removed is None
        if whole or not len(now):
            return now
        segment = segment_writer(folder, now.manifest, now.k)
        writer.written.append(segment.folder)
        try:
            for start, block in now.blocks():
                batch = now.rows.slice(start, len(block)).combine_chunks().to_batches()[0]
                if batch.num_rows != len(block):
                    raise GalleryError(f"rows {start} and after: a column has over 2 GiB of text")
                lengths = now.lengths(np.arange(start, start + len(block)))
                segment.append(np.asarray(block.values), lengths, batch)
                if progress is not None:
                    progress(len(block))
            entry = segment.finish()
        except BaseException:
            segment.discard()
            raise
        after = now.manifest.after([entry])
        if after.index is not None:
            after = _with_index(writer, replace(after, index=None), after.index.asked, None)
        return writer.commit(after)


def build_index(
    folder: Path, spec: str | None, progress: Progress | None, only_state: str | None = None
) -> Snapshot:
    """Train an index and store it with a shard for every segment, in place of any other.

    With `only_state`, the checksum of a manifest, nothing happens in another state of the gallery.
    """
    with writing(folder, index=False) as writer:
        now = writer.now.manifest
        if only_state is not None and now.checksum != only_state:
            return Snapshot(folder, now)
        plain = _without_index(now)
        after = _with_index(writer, plain.after(plain.segments), spec, progress)
        return writer.commit(after)


def drop_index(folder: Path) -> Snapshot:
    """Remove the stored index."""
    with writing(folder, index=False) as writer:
        now = writer.now.manifest
        if now.index is None:
            return writer.now
        plain = _without_index(now)
        return writer.commit(plain.after(plain.segments))


def _without_index(manifest: Manifest) -> Manifest:
    if manifest.index is None:
        return manifest
    shard = manifest.index.shard
    segments = tuple(entry.without_files(shard) for entry in manifest.segments)
    return replace(manifest, segments=segments, index=None)


def _with_index(
    writer: Writer, manifest: Manifest, spec: str | None, progress: Progress | None
) -> Manifest:
    """Train an index for the state of `manifest` and write it and all shards."""
    state = Snapshot(writer.folder, manifest)
    trained = train(state, spec)
    index = write_trained(writer.folder, trained, spec)
    writer.written.append(writer.folder / index.name)
    entries = []
    for segment in state.segments:
        writer.written.append(writer.folder / segment.entry.name / index.shard)
        entries.append(write_shard(writer.folder, index, trained.index, segment, progress))
    return replace(manifest, segments=tuple(entries), index=index)
