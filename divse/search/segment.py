"""One segment of a gallery: a folder of files that never change once they are written.

    embeddings.npy   uniform: (n, K, D); ragged: (total elements, D), packed
    offsets.npy      ragged only: (n + 1,) int64, set i owns elements offsets[i]:offsets[i + 1]
    rows.arrow       Arrow IPC file: the ids and the user's columns, one row a set

Arrays are read through memory maps and never unpickled.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from divse.search.manifest import FileEntry, GalleryError, Manifest, SegmentEntry
from divse.sets import EmbeddingSets

EMBEDDINGS, OFFSETS, ROWS = "embeddings.npy", "offsets.npy", "rows.arrow"


@dataclass(frozen=True)
class Segment:
    """An open segment: embeddings (n, K, D), or (elements, D) with offsets (n + 1,)."""

    entry: SegmentEntry
    start: int
    embeddings: np.ndarray
    offsets: np.ndarray | None
    rows: Any

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
        return cls(entry, start, embeddings, offsets, map_rows(folder / ROWS, manifest, entry))

    def lengths(self, first: int, last: int) -> np.ndarray:
        """Elements of each of the sets first..last-1 of this segment."""
        if self.offsets is None:
            return np.full(last - first, self.entry.k, dtype=np.int64)
        return np.diff(self.offsets[first : last + 1])

    def block(self, first: int, last: int) -> EmbeddingSets:
        """Return the sets first..last-1: a view of the memory map, or padded if ragged."""
        if self.offsets is None:
            return EmbeddingSets(self.embeddings[first:last])
        elements = self.embeddings[self.offsets[first] : self.offsets[last]]
        return EmbeddingSets(*_padded(elements, self.lengths(first, last)))

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Return sets (n, K, D), padded with zeros if ragged, and their lengths (n,) or None."""
        if self.offsets is None:
            return self.embeddings[rows], None
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        first = np.cumsum(lengths) - lengths  # where each set starts among the gathered elements
        index = np.arange(lengths.sum()) + np.repeat(self.offsets[rows] - first, lengths)
        return _padded(self.embeddings[index], lengths)


def _padded(elements: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return packed elements (total, D) as sets (n, K, D) padded with zeros, and their lengths."""
    real = np.arange(lengths.max(initial=1)) < lengths[:, None]
    values = np.zeros((*real.shape, elements.shape[1]), elements.dtype)
    values[real] = elements
    return values, lengths


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
    """Memory-map an .npy file that must have this shape and dtype."""
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError, SyntaxError) as error:
        raise GalleryError(f"{path} is damaged: {error}") from None
    if array.shape != shape or array.dtype != np.dtype(dtype) or not array.flags.c_contiguous:
        raise GalleryError(
            f"{path} is damaged: it holds {array.dtype} {array.shape}, "
            f"the manifest says {dtype} {shape}"
        )
    return np.asarray(array)  # a plain view: every slice of a np.memmap costs more


def map_rows(path: Path, manifest: Manifest, entry: SegmentEntry) -> Any:
    """Memory-map rows.arrow as an Arrow table with the columns that the manifest names."""
    import pyarrow as pa

    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
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


def _check_offsets(path: Path, offsets: np.ndarray, entry: SegmentEntry) -> None:
    lengths = np.diff(offsets)
    ends_fit = offsets[0] == 0 and offsets[-1] == entry.elements
    if not ends_fit or lengths.min() < 1 or lengths.max() != entry.k:
        raise GalleryError(
            f"{path} is damaged: its offsets do not divide {entry.elements} elements"
        )
