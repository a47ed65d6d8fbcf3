"""One segment of a gallery: a folder of files that never change once they are written.

    embeddings.npy      uniform: (n, K, D); ragged: (total elements, D), packed
    offsets.npy         ragged only: (n + 1,) int64, set i owns elements offsets[i]:offsets[i + 1]
    rows.arrow          Arrow IPC file: the ids and the user's columns, one row a set
    codes.npy           optional int8 codes of the embeddings, in their shape (quantise.py), with
    scales.npy            the scale and
    residuals.npy         the residual norm of each element, fp32
    removed_XXXXXX.npy  optional: (ceil(n / 8),) uint8, bit i & 7 of byte i >> 3: set i is removed

Arrays are read through memory maps and never unpickled. What a segment offers leaves removed sets
out: its sets are numbered as if they had never been there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from divse.search.manifest import GalleryError, Manifest, Removed, SegmentEntry
from divse.search.mapping import MappedFile, as_array, as_table, map_files
from divse.search.rows import ID
from divse.sets import EmbeddingSets, pad_elements

EMBEDDINGS, OFFSETS, ROWS = "embeddings.npy", "offsets.npy", "rows.arrow"
CODES, SCALES, RESIDUALS = "codes.npy", "scales.npy", "residuals.npy"
VERIFY_BYTES = 1 << 25  # of elements at a time
UNIT_SLACK = 2e-2  # far more than rounding to float16 does to a norm


class Int8Arrays(NamedTuple):
    """int8 codes in the shape of the embeddings, scales and residuals without its last axis."""

    codes: np.ndarray
    scales: np.ndarray
    residuals: np.ndarray


@dataclass(frozen=True)
class Segment:
    """An open segment: embeddings (n, K, D), or (elements, D) with offsets (n + 1,).

    `start` is the gallery's position of the first set; `removed` is the bitmap and `live` (m,) are
    the sets that are not removed, both None if none is; `rows` is the Arrow table of all n; `files`
    are the maps of all files.
    """

    entry: SegmentEntry
    start: int
    files: dict[str, MappedFile]
    embeddings: np.ndarray
    offsets: np.ndarray | None
    int8: Int8Arrays | None
    rows: Any
    removed: np.ndarray | None
    live: np.ndarray | None

    @classmethod
    def open(
        cls,
        gallery: Path,
        manifest: Manifest,
        entry: SegmentEntry,
        start: int,
        without: Iterable[str] = (),
    ) -> Segment:
        """Open the segment whose first set has position `start`; sizes and headers are checked.

        Files named in `without` are not looked at.
        """
        ragged = manifest.layout == "ragged"
        needed = {EMBEDDINGS, ROWS} | ({OFFSETS} if ragged else set())
        if missing := needed - set(entry.files):
            raise GalleryError(f"{gallery}: the manifest names no {min(missing)} in {entry.name}")
        files = map_files(gallery / entry.name, entry.without_files(*without).files)
        shape = (entry.elements, manifest.dim) if ragged else (entry.sets, entry.k, manifest.dim)
        embeddings = as_array(files[EMBEDDINGS], shape, manifest.dtype)
        offsets = None
        if ragged:
            offsets = as_array(files[OFFSETS], (entry.sets + 1,), "int64")
            _check_offsets(files[OFFSETS].path, offsets, entry)
        return cls(
            entry,
            start,
            files,
            embeddings,
            offsets,
            _int8_arrays(files, shape),
            rows_table(files[ROWS], manifest, entry),
            *_removed_sets(files, entry, offsets),
        )

    @property
    def sets(self) -> int:
        """Sets that are not removed."""
        return self.entry.live_sets

    def own(self, rows: np.ndarray) -> np.ndarray:
        """Where the sets `rows` lie in the files."""
        return rows if self.live is None else np.asarray(self.live[rows])

    def live_rows(self, columns: list[str] | None = None) -> Any:
        """Rows, or some columns of them, of the sets that are not removed, as an Arrow table."""
        rows = self.rows if columns is None else self.rows.select(columns)
        return rows if self.live is None else rows.take(self.live)

    def take_rows(self, rows: np.ndarray, columns: list[str]) -> Any:
        """Columns of the sets `rows`, as an Arrow table.

        Arrow's own `take` goes over all blocks of the table, this over those that hold a row.
        """
        import pyarrow as pa

        own, (blocks, ends) = self.own(rows), self._blocks
        holder, parts = np.searchsorted(ends, own, "right"), []
        for number in np.unique(holder):
            block = blocks[number]
            within = own[holder == number] - (ends[number] - block.num_rows)
            parts.append(block.select(columns).take(pa.array(within)))
        schema = pa.schema([self.rows.schema.field(name) for name in columns])
        found = pa.Table.from_batches(parts, schema).combine_chunks()
        return found.take(pa.array(np.argsort(np.argsort(holder, kind="stable"))))

    @cached_property
    def _blocks(self) -> tuple[list[Any], np.ndarray]:
        """The blocks of `rows`, and the row after each."""
        blocks = self.rows.to_batches()
        return blocks, np.cumsum([block.num_rows for block in blocks])

    def take_ids(self, rows: np.ndarray) -> np.ndarray:
        """Ids (n,) int64 of the sets `rows`, where they are numbers; without the cost of Arrow."""
        own, blocks = self.own(rows), self._id_blocks
        if len(blocks) == 1:
            return np.asarray(blocks[0][own])
        ends = self._blocks[1]
        holder = np.searchsorted(ends, own, "right")
        found = np.empty(len(own), np.int64)
        for number in set(holder.tolist()):
            mine, block = holder == number, blocks[number]
            found[mine] = block[own[mine] - (ends[number] - len(block))]
        return found

    @cached_property
    def _id_blocks(self) -> list[np.ndarray]:
        """Views of the ids of all blocks."""
        return [block.column(ID).to_numpy() for block in self._blocks[0]]

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Elements of each of the sets `rows`."""
        own = self.own(rows)
        if self.offsets is None:
            return np.full(len(own), self.entry.k, dtype=np.int64)
        return np.asarray(self.offsets[own + 1] - self.offsets[own])

    def block(self, first: int, last: int) -> EmbeddingSets:
        """Return the sets first..last-1: a view of the memory map where that is possible."""
        if self.offsets is None and self.live is None:
            return EmbeddingSets(self.embeddings[first:last])
        return EmbeddingSets(*self.take(np.arange(first, last)))

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Return sets (n, K, D), padded with zeros if ragged, and their lengths (n,) or None."""
        own = self.own(rows)
        if self.offsets is None:
            return self.embeddings[own], None
        lengths = self.lengths(rows)
        return pad_elements(self.embeddings[self.element_index(rows)], lengths), lengths

    def verify(self) -> None:
        """Check what checksums cannot: that all elements are unit vectors."""
        elements = self.embeddings.reshape(-1, self.embeddings.shape[-1])
        step = max(1, VERIFY_BYTES // (4 * elements.shape[1]))
        for first in range(0, len(elements), step):
            part = elements[first : first + step].astype(np.float32)
            with np.errstate(over="ignore", invalid="ignore"):
                wrong = ~(np.abs(np.linalg.norm(part, axis=1) - 1) < UNIT_SLACK)
            if wrong.any():
                raise GalleryError(
                    f"{self.files[EMBEDDINGS].path} is damaged: element "
                    f"{first + int(wrong.argmax())} is no unit vector"
                )

    def element_index(self, rows: np.ndarray) -> np.ndarray:
        """Where the elements of the sets `rows` lie among all of the files, one after another."""
        own, lengths = self.own(rows), self.lengths(rows)
        start = own * self.entry.k if self.offsets is None else self.offsets[own]
        first = np.cumsum(lengths) - lengths  # where each set starts among the gathered elements
        return np.asarray(np.arange(lengths.sum()) + np.repeat(start - first, lengths))

    def owners(self, elements: np.ndarray) -> np.ndarray:
        """The gallery's positions of the sets that own these elements, -1 for removed ones."""
        if self.offsets is None:
            own = elements // self.entry.k
        else:
            own = np.searchsorted(self.offsets, elements, side="right") - 1
        positions = self.positions(own)
        if self.removed is not None:
            positions[self.removed[own >> 3] >> (own & 7) & 1 == 1] = -1
        return positions

    def positions(self, own: np.ndarray) -> np.ndarray:
        """The gallery's positions of sets that lie at `own` in the files, none of them removed."""
        rows = own if self.live is None else np.searchsorted(self.live, own)
        return np.asarray(rows + self.start)


def rows_table(file: MappedFile, manifest: Manifest, entry: SegmentEntry) -> Any:
    """View rows.arrow as an Arrow table, which must have the columns that the manifest names."""
    table = as_table(file)
    try:
        found = {column.name: str(column.type) for column in table.schema}
    except UnicodeDecodeError as error:
        raise GalleryError(f"{file.path} is damaged: names of columns: {error}") from None
    expected = {"id": manifest.id_type, **manifest.columns}
    if found != expected or table.num_rows != entry.sets:
        raise GalleryError(
            f"{file.path} is damaged: {table.num_rows} rows of {found}, "
            f"the manifest says {entry.sets} rows of {expected}"
        )
    return table


def _int8_arrays(files: dict[str, MappedFile], shape: tuple[int, ...]) -> Int8Arrays | None:
    if not {CODES, SCALES, RESIDUALS} <= set(files):
        return None
    return Int8Arrays(
        as_array(files[CODES], shape, "int8"),
        as_array(files[SCALES], shape[:-1], "float32"),
        as_array(files[RESIDUALS], shape[:-1], "float32"),
    )


def _removed_sets(
    files: dict[str, MappedFile], entry: SegmentEntry, offsets: np.ndarray | None
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The bitmap of removed sets and the indices of those that are left."""
    if entry.removed is None:
        return None, None
    file = files[entry.removed.file]
    bitmap = np.array(as_array(file, (-(-entry.sets // 8),), "uint8"))
    removed = np.unpackbits(bitmap, bitorder="little").astype(bool)
    counted = counted_removed(entry.removed.file, removed[: entry.sets], entry.k, offsets)
    if counted != entry.removed or removed[entry.sets :].any():
        raise GalleryError(
            f"{file.path} is damaged: it removes {counted.sets} sets of {counted.elements} "
            f"elements, the manifest says {entry.removed.sets} of {entry.removed.elements}"
        )
    return bitmap, np.flatnonzero(~removed[: entry.sets])


def counted_removed(file: str, removed: np.ndarray, k: int, offsets: np.ndarray | None) -> Removed:
    """Count the sets and elements that a mask (n,) removes."""
    sets = int(removed.sum())
    elements = sets * k if offsets is None else int(np.diff(offsets)[removed].sum())
    return Removed(file, sets, elements)


def _check_offsets(path: Path, offsets: np.ndarray, entry: SegmentEntry) -> None:
    ascending = (offsets[1:] > offsets[:-1]).all()  # np.diff alone may wrap
    ends_fit = offsets[0] == 0 and offsets[-1] == entry.elements
    if not ends_fit or not ascending or np.diff(offsets).max() != entry.k:
        raise GalleryError(
            f"{path} is damaged: its offsets do not divide {entry.elements} elements"
        )
