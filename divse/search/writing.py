"""Writing the next segment of a gallery: sets and rows side by side, checked, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from divse.search.intake import SetsSource, blocks_of, unit_block
from divse.search.manifest import Manifest, SegmentEntry
from divse.search.mapping import map_file
from divse.search.rows import ID, RowStream, first_duplicate
from divse.search.segment import ROWS, rows_table
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


def write_segment(
    folder: Path, manifest: Manifest, new: NewRows, schema: Any = None, taken: Any = None
) -> tuple[Manifest, SegmentEntry]:
    """Write `new` as a segment of `folder`; return its entry and the manifest, now complete.

    `manifest` is the state before, without layout, dim and types for a new gallery; else `schema`
    is that of its rows (Arrow) and `taken` (ChunkedArray) the ids that may not come again. The
    manifest that is returned does not name the segment yet. If anything fails it is removed.
    """
    blocks = iter(blocks_of(new.sets))
    first = next(blocks, None)
    if first is None:
        raise ValueError("there are no sets to store; a gallery has at least one")
    rows = RowStream(new.ids, new.columns, first_id=manifest.next_id, schema=schema)
    if not manifest.layout:
        layout = "uniform" if first.lengths is None else "ragged"
        manifest = replace(manifest, layout=layout, dim=first.dim)
    writer = segment_writer(folder, manifest, manifest.k or first.k)
    try:
        _write_blocks(writer, manifest, rows, first, blocks, new.progress)
        entry = writer.finish()
        types = rows.types
        manifest = replace(manifest, id_type=types.pop(ID), columns=types)
        next_id = _check_ids(folder, manifest, entry, taken)
    except BaseException:
        writer.discard()
        raise
    return replace(manifest, next_id=next_id), entry


def segment_writer(folder: Path, manifest: Manifest, k: int) -> SegmentWriter:
    """Begin the segment that follows the state of `manifest`, with sets of `k` elements."""
    return SegmentWriter(
        folder,
        manifest.generation,
        ragged=manifest.layout == "ragged",
        k=k,
        dim=manifest.dim,
        dtype=manifest.dtype,
        codes=manifest.codes,
    )


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


def _check_ids(folder: Path, manifest: Manifest, entry: SegmentEntry, taken: Any) -> int:
    """Refuse ids that occur twice, also among those taken; return the next free integer id."""
    import pyarrow.compute as pc

    file = map_file(folder / entry.name / ROWS, entry.files[ROWS])
    column = rows_table(file, manifest, entry).column(ID)
    twice = first_duplicate(column)
    if twice is None and taken is not None:
        again = taken.filter(pc.is_in(taken, value_set=column.combine_chunks()))
        twice = again[0].as_py() if len(again) else None
    if twice is not None:
        raise ValueError(f"id {twice!r} occurs twice: ids are unique in a gallery")
    if manifest.id_type != "int64":
        return manifest.next_id
    return max(manifest.next_id, int(pc.max(column).as_py()) + 1, 0)
