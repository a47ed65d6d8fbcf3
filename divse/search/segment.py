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

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from divse.search.manifest import FileEntry, GalleryError, Manifest, Removed, SegmentEntry
from divse.sets import EmbeddingSets

EMBEDDINGS, OFFSETS, ROWS = "embeddings.npy", "offsets.npy", "rows.arrow"
CODES, SCALES, RESIDUALS = "codes.npy", "scales.npy", "residuals.npy"
VERIFY_BYTES = 1 << 25  # of elements at a time
UNIT_SLACK = 2e-2  # far more than rounding to float16 does to a norm
HEADER_START = 10  # bytes of an .npy file before its header: magic, version 1.0, header's size


class Int8Arrays(NamedTuple):
    """int8 codes in the shape of the embeddings, scales and residuals without its last axis."""

    codes: np.ndarray
    scales: np.ndarray
    residuals: np.ndarray


@dataclass(frozen=True)
class Segment:
    """An open segment: embeddings (n, K, D), or (elements, D) with offsets (n + 1,).

    `start` is the gallery's position of the first set; `removed` is the bitmap and `live` (m,) are
    the sets that are not removed, both None if none is; `rows` is the Arrow table of all n.
    """

    entry: SegmentEntry
    start: int
    embeddings: np.ndarray
    offsets: np.ndarray | None
    int8: Int8Arrays | None
    rows: Any
    removed: np.ndarray | None
    live: np.ndarray | None

    @classmethod
    def open(cls, gallery: Path, manifest: Manifest, entry: SegmentEntry, start: int) -> Segment:
        """Open the segment whose first set has position `start`; sizes and headers are checked."""
        folder = gallery / entry.name
        ragged = manifest.layout == "ragged"
        needed = {EMBEDDINGS, ROWS} | ({OFFSETS} if ragged else set())
        if missing := needed - set(entry.files):
            raise GalleryError(f"{gallery}: the manifest names no {min(missing)} in {entry.name}")
        for name, file in entry.files.items():
            check_size(folder / name, file)
        shape = (entry.elements, manifest.dim) if ragged else (entry.sets, entry.k, manifest.dim)
        embeddings = map_array(folder / EMBEDDINGS, shape, manifest.dtype)
        offsets = None
        if ragged:
            offsets = map_array(folder / OFFSETS, (entry.sets + 1,), "int64")
            _check_offsets(folder / OFFSETS, offsets, entry)
        return cls(
            entry,
            start,
            embeddings,
            offsets,
            _map_int8(folder, entry, shape),
            map_rows(folder / ROWS, manifest, entry),
            *_read_removed(folder, entry, offsets),
        )

    @property
    def sets(self) -> int:
        """Sets that are not removed."""
        return self.entry.live_sets

    def own(self, rows: np.ndarray) -> np.ndarray:
        """Where the sets `rows` lie in the files."""
        return rows if self.live is None else np.asarray(self.live[rows])

    def live_rows(self) -> Any:
        """Ids and columns of the sets that are not removed, as an Arrow table."""
        return self.rows if self.live is None else self.rows.take(self.live)

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
        return _padded(self.embeddings[self.element_index(rows)], lengths), lengths

    def verify(self, folder: Path) -> None:
        """Check what checksums cannot: that all elements are unit vectors."""
        elements = self.embeddings.reshape(-1, self.embeddings.shape[-1])
        step = max(1, VERIFY_BYTES // (4 * elements.shape[1]))
        for first in range(0, len(elements), step):
            part = elements[first : first + step].astype(np.float32)
            with np.errstate(over="ignore", invalid="ignore"):
                wrong = ~(np.abs(np.linalg.norm(part, axis=1) - 1) < UNIT_SLACK)
            if wrong.any():
                raise GalleryError(
                    f"{folder / EMBEDDINGS} is damaged: element {first + int(wrong.argmax())} is "
                    "no unit vector"
                )

    def element_index(self, rows: np.ndarray) -> np.ndarray:
        """Where the elements of the sets `rows` lie among all of the files, one after another."""
        own, lengths = self.own(rows), self.lengths(rows)
        start = own * self.entry.k if self.offsets is None else self.offsets[own]
        first = np.cumsum(lengths) - lengths  # where each set starts among the gathered elements
        return np.asarray(np.arange(lengths.sum()) + np.repeat(start - first, lengths))

    def owners(self, elements: np.ndarray) -> np.ndarray:
        """The gallery's positions of the sets that own these elements, none of them removed."""
        if self.offsets is None:
            own = elements // self.entry.k
        else:
            own = np.searchsorted(self.offsets, elements, side="right") - 1
        return self.positions(own)

    def positions(self, own: np.ndarray) -> np.ndarray:
        """The gallery's positions of sets that lie at `own` in the files, none of them removed."""
        rows = own if self.live is None else np.searchsorted(self.live, own)
        return np.asarray(rows + self.start)


def _padded(elements: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return packed elements (total, D) as sets (n, K, D) padded with zeros."""
    real = np.arange(lengths.max(initial=1)) < lengths[:, None]
    values = np.zeros((*real.shape, elements.shape[1]), elements.dtype)
    values[real] = elements
    return values


def check_size(path: Path, file: FileEntry) -> None:
    """Refuse a file that is missing, a link out of the gallery, or not of the recorded size."""
    if path.is_symlink() or path.parent.is_symlink():
        raise GalleryError(f"{path} is a link; a gallery holds plain files only")
    if not path.is_file():
        raise GalleryError(f"{path} is missing: the gallery is not whole")
    size = path.stat().st_size
    if size != file.bytes:
        word = "truncated" if size < file.bytes else "too long"
        raise GalleryError(f"{path} is {word}: {size} bytes, the manifest says {file.bytes}")


def map_array(path: Path, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Memory-map an .npy file that must have this shape and dtype.

    Its header is compared with the one that is expected, never evaluated.
    """
    expected = np.dtype(dtype)
    with open(path, "rb") as file:
        start = file.read(HEADER_START)
        size = int.from_bytes(start[8:], "little")
        header = file.read(size)
    descr = np.lib.format.dtype_to_descr(expected)
    right = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    bytes_of_data = path.stat().st_size - HEADER_START - size
    if start[:8] != b"\x93NUMPY\x01\x00" or header.strip() != right.encode():
        raise GalleryError(
            f"{path} is damaged: its header is {header[:200]!r}, "
            f"the manifest says {dtype} {shape}: {right}"
        )
    if bytes_of_data != expected.itemsize * math.prod(shape):
        raise GalleryError(f"{path} is damaged: {bytes_of_data} bytes are not {dtype} {shape}")
    # a plain view: every slice of a np.memmap costs more
    return np.asarray(np.memmap(path, expected, "r", HEADER_START + size, shape))


def map_rows(path: Path, manifest: Manifest, entry: SegmentEntry) -> Any:
    """Memory-map rows.arrow as an Arrow table with the columns that the manifest names."""
    import pyarrow as pa

    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        table.validate(full=True)  # some ten ms a million rows; what is invalid could crash readers
    except (pa.ArrowException, OSError) as error:
        raise GalleryError(f"{path} is damaged: {error}") from None
    found = {column.name: str(column.type) for column in table.schema}
    expected = {"id": manifest.id_type, **manifest.columns}
    if found != expected or table.num_rows != entry.sets:
        raise GalleryError(
            f"{path} is damaged: {table.num_rows} rows of {found}, "
            f"the manifest says {entry.sets} rows of {expected}"
        )
    return table


def _map_int8(folder: Path, entry: SegmentEntry, shape: tuple[int, ...]) -> Int8Arrays | None:
    if not {CODES, SCALES, RESIDUALS} <= set(entry.files):
        return None
    return Int8Arrays(
        map_array(folder / CODES, shape, "int8"),
        map_array(folder / SCALES, shape[:-1], "float32"),
        map_array(folder / RESIDUALS, shape[:-1], "float32"),
    )


def _read_removed(
    folder: Path, entry: SegmentEntry, offsets: np.ndarray | None
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The bitmap of removed sets and the indices of those that are left."""
    if entry.removed is None:
        return None, None
    path = folder / entry.removed.file
    bitmap = np.array(map_array(path, (-(-entry.sets // 8),), "uint8"))
    removed = np.unpackbits(bitmap, bitorder="little").astype(bool)
    counted = counted_removed(entry.removed.file, removed[: entry.sets], entry.k, offsets)
    if counted != entry.removed or removed[entry.sets :].any():
        raise GalleryError(
            f"{path} is damaged: it removes {counted.sets} sets of {counted.elements} elements, "
            f"the manifest says {entry.removed.sets} of {entry.removed.elements}"
        )
    return bitmap, np.flatnonzero(~removed[: entry.sets])


def counted_removed(file: str, removed: np.ndarray, k: int, offsets: np.ndarray | None) -> Removed:
    """Count the sets and elements that a mask (n,) removes."""
    sets = int(removed.sum())
    elements = sets * k if offsets is None else int(np.diff(offsets)[removed].sum())
    return Removed(file, sets, elements)


def _check_offsets(path: Path, offsets: np.ndarray, entry: SegmentEntry) -> None:
    lengths = np.diff(offsets)
    ends_fit = offsets[0] == 0 and offsets[-1] == entry.elements
    if not ends_fit or lengths.min() < 1 or lengths.max() != entry.k:
        raise GalleryError(
            f"{path} is damaged: its offsets do not divide {entry.elements} elements"
        )
