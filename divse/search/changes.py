"""Changes of a gallery: each takes it from one committed state to the next, or leaves it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from divse.search import durable
from divse.search.element_index import train
from divse.search.index_files import shard_name, write_shard, write_trained
from divse.search.lock import writer_lock
from divse.search.manifest import FILE_NAME, IndexEntry, Manifest
from divse.search.rows import ID, as_ids
from divse.search.snapshot import Snapshot
from divse.search.writer import Writer, check_target, is_state, sweep, writing
from divse.search.writing import NewRows, Progress, segment_writer, write_segment


def create(folder: Path, empty: Manifest, new: NewRows, overwrite: bool) -> Manifest:
    """Write the first segment of a new gallery, or of one that replaces another."""
    check_target(folder, overwrite)
    existed = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with writer_lock(folder):
            old = check_target(folder, overwrite)
            if old is not None:
                empty = replace(empty, generation=old.generation)
            return _create(folder, empty, new)
    finally:
        if not existed and not (folder / FILE_NAME).exists():
            durable.remove(folder)


def _create(folder: Path, empty: Manifest, new: NewRows) -> Manifest:
    manifest, entry = write_segment(folder, empty, new)
    after = manifest.after([entry])
    try:
        after.write(folder)
    except BaseException:
        if not is_state(folder, after):
            durable.remove(folder / entry.name)
        raise
    sweep(folder, after)
    return after


def add(folder: Path, new: NewRows) -> Manifest:
    """Append a segment."""
    with writing(folder) as writer:
        now = writer.now.manifest
        if new.ids is None and now.id_type != "int64":
            raise ValueError("this gallery has string ids: give ids for the new sets")
        manifest, entry = writer.add(now, new, writer.now.id_column)
        return writer.commit(manifest.after([*manifest.segments, entry]))


def remove(folder: Path, ids: Iterable[Any], missing_ok: bool) -> Manifest:
    """Remove the sets with these ids."""
    with writing(folder) as writer:
        removed = _positions(writer.now, ids, missing_ok)
        if not len(removed):
            return writer.now.manifest
        return writer.commit(writer.now.manifest.after(writer.without(removed)))


def update(folder: Path, new: NewRows, insert: bool) -> Manifest:
    """Replace the sets with these ids; with `insert` new ids are added as well."""
    import pyarrow.compute as pc

    with writing(folder) as writer:
        now = writer.now
        new.ids = as_ids(new.ids, now.schema.field(ID).type)
        removed = _positions(now, new.ids, missing_ok=insert)
        kept = now.id_column.filter(pc.invert(pc.is_in(now.id_column, value_set=new.ids)))
        manifest, entry = writer.add(now.manifest, new, kept)
        before = writer.without(removed) if len(removed) else list(now.manifest.segments)
        before = [segment for segment in before if segment.live_sets]
        return writer.commit(manifest.after([*before, entry]))


def compact(folder: Path, progress: Progress | None) -> Manifest:
    """Rewrite the sets that are left as one segment, in the same order; train its index anew."""
    with writing(folder) as writer:
        now = writer.now
        whole = len(now.segments) == 1 and now.segments[0].entry.removed is None
        if whole or not len(now):
            return now.manifest
        segment = segment_writer(folder, now.manifest, now.k)
        writer.written.append(segment.folder)
        try:
            for start, block in now.blocks():
                batch = now.rows.slice(start, len(block)).combine_chunks().to_batches()[0]
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
            after = _with_index(writer, replace(after, index=None), after.index.spec, None)
        return writer.commit(after)


def build_index(
    folder: Path, spec: str | None, progress: Progress | None, only_state: str | None = None
) -> Manifest:
    """Train an element index and store it with a shard for every segment, in place of any other.

    With `only_state`, the checksum of a manifest, nothing happens in another state of the gallery.
    """
    with writing(folder) as writer:
        now = writer.now.manifest
        if only_state is not None and now.checksum != only_state:
            return now
        plain = _without_index(now)
        after = _with_index(writer, plain.after(plain.segments), spec, progress)
        return writer.commit(after)


def drop_index(folder: Path) -> Manifest:
    """Remove the stored element index."""
    with writing(folder) as writer:
        now = writer.now.manifest
        if now.index is None:
            return now
        plain = _without_index(now)
        return writer.commit(plain.after(plain.segments))


def _without_index(manifest: Manifest) -> Manifest:
    if manifest.index is None:
        return manifest
    shard = shard_name(manifest.index)
    segments = tuple(entry.without_files(shard) for entry in manifest.segments)
    return replace(manifest, segments=segments, index=None)


def _with_index(
    writer: Writer, manifest: Manifest, spec: str | None, progress: Progress | None
) -> Manifest:
    """Train an index for the state of `manifest` and write it and all shards."""
    state = Snapshot(writer.folder, manifest)
    trained, spec = train(state, spec)
    index: IndexEntry = write_trained(writer.folder, trained, spec)
    writer.written.append(writer.folder / index.name)
    entries = []
    for segment in state.segments:
        writer.written.append(writer.folder / segment.entry.name / shard_name(index))
        entries.append(write_shard(writer.folder, index, trained, segment, progress))
    return replace(manifest, segments=tuple(entries), index=index)


def _positions(now: Snapshot, ids: Any, missing_ok: bool) -> np.ndarray:
    """Positions of ids, ascending; KeyError names those that are not there."""
    import pyarrow.compute as pc

    wanted = as_ids(ids, now.schema.field(ID).type)
    found = pc.index_in(wanted, value_set=now.id_column)
    if found.null_count and not missing_ok:
        lost = wanted.filter(pc.is_null(found)).to_pylist()
        listed = ", ".join(map(repr, lost[:5])) + (", ..." if len(lost) > 5 else "")
        raise KeyError(f"no sets with these ids in the gallery: {listed} ({len(lost)} in all)")
    return np.unique(found.drop_null().to_numpy(zero_copy_only=False)).astype(np.int64)
