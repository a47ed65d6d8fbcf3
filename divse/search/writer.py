"""The one writer of a gallery: the lock, the state under it, the commit, and the tidying.

A writer holds the lock, reads the present state, writes new files beside the old ones, and replaces
the manifest in one step. Only then are files removed that the manifest no longer names; readers
keep what they have open. Whatever a killed writer left is removed by the next one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from divse.search import durable
from divse.search.index_files import read_trained, write_shard
from divse.search.index_spec import is_usable
from divse.search.lock import LOCK_NAME, writer_lock
from divse.search.manifest import (
    FILE_NAME,
    INDEX_NAME,
    SEGMENT_NAME,
    TUNED,
    FileEntry,
    GalleryError,
    Manifest,
    SegmentEntry,
)
from divse.search.segment import Segment, counted_removed
from divse.search.segment_writer import NpyStream
from divse.search.snapshot import Snapshot
from divse.search.writing import NewRows, write_segment


@dataclass
class Writer:
    """A gallery's folder under the lock, with the state it is in and the files not yet named."""

    folder: Path
    now: Snapshot
    written: list[Path]

    def commit(self, after: Manifest) -> Snapshot:
        """Make `after` the gallery's state, and open it before another writer may change it."""
        replace_state(self.folder, after, self.written)
        self.now = Snapshot(self.folder, after)
        return self.now

    def add(self, manifest: Manifest, new: NewRows, taken: Any) -> tuple[Manifest, SegmentEntry]:
        """Write a segment that nothing names yet."""
        schema = self.now.schema
        manifest, entry = write_segment(self.folder, manifest, new, schema, taken)
        self.written.append(self.folder / entry.name)
        return manifest, self.indexed(manifest, entry)

    def indexed(self, manifest: Manifest, entry: SegmentEntry) -> SegmentEntry:
        """Give a new segment its shard, if there is an index, and what fills it."""
        if manifest.index is None or not is_usable(manifest.index.spec):
            return entry
        trained = read_trained(self.folder, manifest.index, manifest.dim)
        segment = Segment.open(self.folder, manifest, entry, 0)
        return write_shard(self.folder, manifest.index, trained, segment)

    def without(self, removed: np.ndarray) -> list[SegmentEntry]:
        """Segments without the sets at positions `removed`; one that is left empty is dropped."""
        entries = []
        for segment in self.now.segments:
            inside = (removed >= segment.start) & (removed < segment.start + segment.sets)
            rows = segment.own(removed[inside] - segment.start)
            entries.append(self._tombstones(segment, rows) if len(rows) else segment.entry)
        return [entry for entry in entries if entry.live_sets] or entries[-1:]

    def _tombstones(self, segment: Segment, rows: np.ndarray) -> SegmentEntry:
        entry = segment.entry
        mask = np.ones(entry.sets, dtype=bool)
        mask[segment.own(np.arange(segment.sets))] = False
        mask[rows] = True
        name = f"removed_{self.now.manifest.generation + 1:06x}.npy"
        path = self.folder / entry.name / name
        self.written.append(path)
        bitmap = np.packbits(mask, bitorder="little")
        stream = NpyStream(path, (), "uint8")
        stream.append(bitmap)
        stream.close()
        durable.sync_folder(path.parent)
        if entry.removed is not None:
            entry = entry.without_files(entry.removed.file)
        file = FileEntry(path.stat().st_size, durable.checksum_file(path))
        removed = counted_removed(name, mask, entry.k, segment.offsets)
        return replace(entry.with_file(name, file), removed=removed)


@contextmanager
def writing(folder: Path, *, index: bool = True) -> Iterator[Writer]:
    """Hold the lock and read the state; what was written and not committed is removed.

    A writer who replaces the index opens the state without `index`: it may be damaged.
    """
    with writer_lock(folder):
        durable.sync_folder(folder)  # the state may be that of a writer who did not come to it
        now = Snapshot.open(folder, index=index)
        sweep(folder, now.manifest)
        writer = Writer(folder, now, [])
        try:
            yield writer
        finally:
            for path in writer.written:
                durable.remove(path)


def replace_state(folder: Path, after: Manifest, written: list[Path]) -> None:
    """Replace the manifest and tidy up; `written` are the files that only it names.

    They leave the list before they may be named: whatever happens, even a second interrupt, they
    are removed only if the manifest that is in place is seen not to name them.
    """
    files = list(written)
    written.clear()
    try:
        after.write(folder)
    except BaseException:
        if not is_state(folder, after):
            for path in files:
                durable.remove(path)
        raise
    sweep(folder, after)


def is_state(folder: Path, manifest: Manifest) -> bool:
    """Whether this manifest is in place."""
    return (folder / FILE_NAME).exists() and Manifest.read(folder).checksum == manifest.checksum


def check_target(folder: Path, overwrite: bool) -> Manifest | None:
    """Return the manifest of the gallery to overwrite, or None if there is none."""
    if folder.is_file():
        raise FileExistsError(f"{folder} is a file; a gallery is a folder")
    if not folder.exists():
        return None
    if not (folder / FILE_NAME).exists():
        if all(_is_ours(path.name) for path in folder.iterdir()):
            return None  # empty, or left by a build that was killed
        raise FileExistsError(
            f"{folder} holds other files and is no gallery: choose another folder"
        )
    if not overwrite:
        raise FileExistsError(f"{folder} holds a gallery already: overwrite=True replaces it")
    try:
        return Manifest.read(folder)
    except GalleryError as error:
        raise GalleryError(f"{error}; to replace it, delete the folder yourself") from None


def _is_ours(name: str) -> bool:
    """Whether only a writer of galleries makes files of this name."""
    temporary = name.startswith((f".{FILE_NAME}.", f".{TUNED}.")) or name == LOCK_NAME
    return temporary or bool(SEGMENT_NAME.fullmatch(name) or INDEX_NAME.fullmatch(name))


def sweep(folder: Path, manifest: Manifest) -> None:
    """Remove what the manifest does not name: rests of earlier states and of killed writers."""
    named = {entry.name: set(entry.files) for entry in manifest.segments}
    if manifest.index is not None:
        named[manifest.index.name] = set(manifest.index.files)
    for path in folder.iterdir():
        if _is_ours(path.name) and path.name not in named and path.name != LOCK_NAME:
            durable.remove(path)
    for name, files in named.items():
        if (folder / name).is_symlink():
            raise GalleryError(f"{folder / name} is a link; a gallery holds plain folders only")
        for path in (folder / name).iterdir() if (folder / name).is_dir() else ():
            if path.name not in files:
                durable.remove(path)
