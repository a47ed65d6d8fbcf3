"""Writing the next segment of a gallery: sets and rows side by side, checked, block by block."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from divse.search.intake import SetsSource, blocks_of, unit_block
from divse.search.manifest import (
    FILE_NAME,
    INDEX_NAME,
    SEGMENT_NAME,
    GalleryError,
    Manifest,
    SegmentEntry,
)
from divse.search.rows import ID, RowStream, first_duplicate
from divse.search.segment import ROWS, map_rows
from divse.search.segment_writer import SegmentWriter
from divse.sets import EmbeddingSets

Progress = Callable[[int], object]


@dataclass
class NewRows:
    """What a caller gives for new sets: the sets themselves, their ids and their columns."""

    sets: SetsSource
    ids: Iterable[Any] | None
    columns: Mapping[str, Iterable[Any]] | None
    progress: Progress | None = None


def commit_segment(
    folder: Path, manifest: Manifest, table: Any, new: NewRows, state: str | None
) -> Manifest:
    """Write `new` as a segment, make it part of the gallery, and return the new manifest.

    `state` is the checksum of the manifest that the caller saw (None: there was none). Until the
    manifest is replaced, nothing has changed; if anything fails, the segment is removed.
    """
    after = write_segment(folder, manifest, table, new)
    try:
        if _state(folder) != state:
            raise GalleryError(f"{folder} was changed meanwhile: open it again, then add")
        after.write(folder)
    except BaseException:
        if _state(folder) != after.checksum:  # else the manifest is in place and names the segment
            shutil.rmtree(folder / after.segments[-1].name, ignore_errors=True)
        raise
    return after


def _state(folder: Path) -> str | None:
    return Manifest.read(folder).checksum if (folder / FILE_NAME).exists() else None


def write_segment(folder: Path, manifest: Manifest, table: Any, new: NewRows) -> Manifest:
    """Write `new` as a segment of `folder` and return the manifest that names it, not yet written.

    `manifest` is the state before, without layout and dim for a new gallery; `table` holds that
    state's rows (Arrow), or None. If anything fails the segment is removed.
    """
    blocks = iter(blocks_of(new.sets))
    first = next(blocks, None)
    if first is None:
        raise ValueError("there are no sets to store; a gallery has at least one")
    rows = RowStream(
        new.ids,
        new.columns,
        first_id=manifest.next_id,
        schema=None if table is None else table.schema,
    )
    if not manifest.layout:
        layout = "uniform" if first.lengths is None else "ragged"
        manifest = replace(manifest, layout=layout, dim=first.dim)
    ragged = manifest.layout == "ragged"
    writer = SegmentWriter(
        folder,
        manifest.generation,
        ragged=ragged,
        k=manifest.k or first.k,
        dim=manifest.dim,
        dtype=manifest.dtype,
    )
    try:
        _write_blocks(writer, manifest, rows, first, blocks, new.progress)
        entry = writer.finish()
        types = rows.types
        manifest = replace(manifest, id_type=types.pop(ID), columns=types)
        next_id = _check_ids(folder, manifest, entry, table)
    except BaseException:
        writer.discard()
        raise
    return manifest.with_segment(entry, next_id)


def _write_blocks(
    writer: SegmentWriter,
    manifest: Manifest,
    rows: RowStream,
    first: EmbeddingSets,
    others: Iterator[EmbeddingSets],
    progress: Progress | None,
) -> None:
    k = manifest.k or first.k
    done = 0
    for block in (item for blocks in ((first,), others) for item in blocks):
        if block.dim != manifest.dim:
            raise ValueError(f"row {done}: sets have D={block.dim}, expected D={manifest.dim}")
        values, lengths = unit_block(block, done)
        if manifest.layout == "uniform" and (block.k != k or lengths.min() < k):
            sizes = f"K={block.k}" if block.k != k else f"{lengths.min()} to {k} elements"
            raise ValueError(
                f"row {done} and after: sets have {sizes}, the gallery is uniform with K={k}; for "
                "sets that differ in size create it from EmbeddingSets with lengths"
            )
        writer.append(values, lengths, rows.take(len(block)))
        done += len(block)
        if progress is not None:
            progress(len(block))
    rows.finish()


def _check_ids(folder: Path, manifest: Manifest, entry: SegmentEntry, table: Any) -> int:
    """Refuse ids that occur twice, also among earlier segments; return the next free integer id."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = map_rows(folder / entry.name / ROWS, manifest, entry).column(ID)
    earlier = [] if table is None else table.column(ID).chunks
    everything = pa.chunked_array([*earlier, *column.chunks])
    if (twice := first_duplicate(everything)) is not None:
        raise ValueError(f"id {twice!r} occurs twice: ids are unique in a gallery")
    if manifest.id_type != "int64":
        return manifest.next_id
    return max(manifest.next_id, int(pc.max(column).as_py()) + 1, 0)


def check_target(folder: Path, overwrite: bool) -> Manifest | None:
    """Return the manifest of the gallery to overwrite, or None if there is none."""
    if folder.is_file():
        raise FileExistsError(f"{folder} is a file; a gallery is a folder")
    if not folder.exists():
        return None
    if not (folder / FILE_NAME).exists():
        if all(SEGMENT_NAME.fullmatch(path.name) for path in folder.iterdir()):
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


def sweep(folder: Path, manifest: Manifest) -> None:
    """Remove what the manifest no longer names: segments and indexes of earlier states."""
    named = {entry.name for entry in manifest.segments}
    for path in folder.iterdir():
        old_segment = SEGMENT_NAME.fullmatch(path.name) and path.name not in named
        old_index = INDEX_NAME.fullmatch(path.name) and path.name != manifest.index_name
        if old_segment or old_index:
            shutil.rmtree(path, ignore_errors=True)


def check_positions(positions: np.ndarray, count: int) -> None:
    """Refuse positions outside 0..count-1."""
    if positions.size and not 0 <= positions.min() <= positions.max() < count:
        raise IndexError(
            f"positions {positions.min()} to {positions.max()}, the gallery has 0 to {count - 1}"
        )
