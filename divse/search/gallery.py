"""A gallery: embedding sets in a folder, with ids and columns, read through memory maps.

    gallery/
        manifest.json          what the gallery is; the only file that is ever replaced
        segment-000000-…/      immutable: embeddings.npy, offsets.npy (ragged), rows.arrow
        index-…/               a prefilter's index over one state of the gallery; may be deleted

Everything can be read with numpy and pyarrow alone; nothing is ever unpickled.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from divse.search.durable import checksum_file
from divse.search.intake import SetsSource
from divse.search.manifest import DTYPES, FILE_NAME, GalleryError, Manifest
from divse.search.rows import ID, first_duplicate
from divse.search.segment import Segment, check_size
from divse.search.writing import (
    NewRows,
    Progress,
    check_positions,
    check_target,
    commit_segment,
    sweep,
)
from divse.sets import EmbeddingSets


class Gallery:
    """N sets of unit vectors on disk, opened for reading; see `create`, `open` and `add`."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Open the segments that `manifest` names; most callers want `Gallery.open(path)`."""
        self.path, self.manifest = path, manifest
        self._segments: list[Segment] = []
        start = 0
        for entry in manifest.segments:
            self._segments.append(Segment.open(path, manifest, entry, start))
            start += entry.sets
        self._starts = np.array([segment.start for segment in self._segments], dtype=np.int64)

    @classmethod
    def create(
        cls,
        path: str | Path,
        sets: SetsSource,
        ids: Iterable[Any] | None = None,
        columns: Mapping[str, Iterable[Any]] | None = None,
        *,
        dtype: str = "float16",
        metadata: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> Gallery:
        """Write a new gallery.

        Args:
            path: a folder that does not exist yet, is empty, or holds the rest of a killed build.
            sets: EmbeddingSets, an array (N, K, D), or an iterator of them (any size in all). The
                gallery is ragged if the first block has lengths, else all sets have K elements.
            ids: one string or integer for each set; None numbers them.
            columns: more values for each set, by name, of any Arrow type.
            dtype: "float16" or "float32", of the stored elements.
            metadata: anything that JSON can hold, such as the model's fingerprint.
            overwrite: replace a gallery that is there; it stays until the new one is complete.
            progress: called with the number of sets written at each step.
        """
        folder = Path(path)
        if dtype not in DTYPES:
            raise ValueError(f"dtype: got {dtype!r}, expected {' or '.join(DTYPES)}")
        known = json.loads(json.dumps(dict(metadata or {})))  # as JSON will give it back
        old = check_target(folder, overwrite)
        existed = folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        empty = Manifest(dtype, "", 0, "", {}, metadata=known)
        state = None
        if old is not None:
            empty, state = replace(empty, generation=old.generation), old.checksum
        try:
            new = NewRows(sets, ids, columns, progress)
            manifest = commit_segment(folder, empty, None, new, state)
        except BaseException:
            if not existed and not (folder / FILE_NAME).exists():
                shutil.rmtree(folder, ignore_errors=True)
            raise
        sweep(folder, manifest)
        return cls(folder, manifest)

    @classmethod
    def open(cls, path: str | Path) -> Gallery:
        """Open a gallery: its manifest, file sizes and headers are checked, contents are not.

        Later writers never disturb it: it stays at the state it was opened in.
        """
        folder = Path(path)
        return cls(folder, Manifest.read(folder))

    def add(
        self,
        sets: SetsSource,
        ids: Iterable[Any] | None = None,
        columns: Mapping[str, Iterable[Any]] | None = None,
        *,
        progress: Progress | None = None,
    ) -> Gallery:
        """Append sets as a new segment and return the gallery with them; this one stays as it is.

        Arguments as in `create`. Until the manifest is replaced at the end, nothing has changed.
        """
        if ids is None and self.manifest.id_type != "int64":
            raise ValueError("this gallery has string ids: give ids for the new sets")
        new = NewRows(sets, ids, columns, progress)
        state = self.manifest.checksum
        return Gallery(self.path, commit_segment(self.path, self.manifest, self.rows, new, state))

    def __len__(self) -> int:
        """Return N, the number of sets."""
        return self.manifest.sets

    @property
    def k(self) -> int:
        """Elements of a set (L), or of the largest one if the gallery is ragged."""
        return self.manifest.k

    @property
    def dim(self) -> int:
        """Dimensions of an element (D)."""
        return self.manifest.dim

    @property
    def ragged(self) -> bool:
        """Whether sets differ in size."""
        return self.manifest.layout == "ragged"

    @property
    def metadata(self) -> dict[str, Any]:
        """What was recorded when the gallery was made."""
        return self.manifest.metadata

    @property
    def rows(self) -> Any:
        """Ids and columns as one Arrow table (memory-mapped), in order of position."""
        import pyarrow as pa

        return pa.concat_tables([segment.rows for segment in self._segments])

    @property
    def ids(self) -> np.ndarray:
        """The id of every set (N,): int64, or str objects."""
        return np.asarray(self.rows.column(ID).to_numpy())

    @property
    def columns(self) -> dict[str, Any]:
        """The user's columns by name, each an Arrow ChunkedArray of N values."""
        return {name: self.rows.column(name) for name in self.manifest.columns}

    def take_rows(self, positions: np.ndarray) -> list[dict[str, Any]]:
        """Return id and columns of the sets at `positions` (n,), one dict each."""
        return list(self.rows.take(np.asarray(positions, dtype=np.int64)).to_pylist())

    def take_ids(self, positions: np.ndarray) -> np.ndarray:
        """Return the ids of the sets at `positions` (any shape), in that shape."""
        flat = np.asarray(positions, dtype=np.int64).reshape(-1)
        taken = self.rows.column(ID).take(flat).to_numpy()
        return np.asarray(taken).reshape(np.shape(positions))

    def sets(self, positions: np.ndarray | None = None) -> EmbeddingSets:
        """Return the sets at `positions` (n,), or all of them, as numpy EmbeddingSets.

        All sets of a uniform gallery in one segment come as the memory map itself; anything else
        is gathered into memory. `blocks` goes over a gallery of any size.
        """
        if positions is None:
            if len(self._segments) == 1 and not self.ragged:
                return EmbeddingSets(self._segments[0].embeddings)
            positions = np.arange(len(self))
        positions = np.asarray(positions, dtype=np.int64)
        check_positions(positions, len(self))
        if len(self._segments) == 1:
            return EmbeddingSets(*self._segments[0].take(positions))
        lengths = np.empty(len(positions), dtype=np.int64)
        values = np.zeros((len(positions), self.k, self.dim), dtype=self.manifest.dtype)
        owner = np.searchsorted(self._starts, positions, side="right") - 1
        for index in np.unique(owner):
            segment, mine = self._segments[index], np.flatnonzero(owner == index)
            taken, sizes = segment.take(positions[mine] - segment.start)
            values[mine, : taken.shape[1]] = taken
            lengths[mine] = taken.shape[1] if sizes is None else sizes
        return EmbeddingSets(values, lengths if self.ragged else None)

    def blocks(self, block_bytes: int = 1 << 27) -> Iterator[tuple[int, EmbeddingSets]]:
        """Yield (position of the first set, sets) over the gallery, in blocks of bounded memory.

        Blocks of a uniform gallery are memory-mapped views; ragged sets are padded.
        """
        itemsize = np.dtype(self.manifest.dtype).itemsize
        step = max(1, block_bytes // (self.k * self.dim * itemsize))
        for segment in self._segments:
            for first in range(0, segment.entry.sets, step):
                last = min(first + step, segment.entry.sets)
                yield segment.start + first, segment.block(first, last)

    def set_sizes(self) -> np.ndarray:
        """Return the number of elements of each set (N,) int64."""
        return np.concatenate([s.lengths(0, s.entry.sets) for s in self._segments])

    def verify(self, progress: Progress | None = None) -> None:
        """Read every byte and check it; GalleryError names the first file that is not as written.

        `progress` hears the bytes read at each step, of `nbytes` in all.
        """
        for entry in self.manifest.segments:
            for name, file in entry.files.items():
                path = self.path / entry.name / name
                check_size(path, file)
                if checksum_file(path, progress) != file.blake2b:
                    raise GalleryError(f"{path} is damaged: its checksum is not the recorded one")
        for segment in self._segments:
            segment.rows.validate(full=True)
        if (twice := first_duplicate(self.rows.column(ID))) is not None:
            raise GalleryError(f"{self.path}: id {twice!r} occurs twice")

    @property
    def nbytes(self) -> int:
        """Bytes of all files that the manifest names."""
        segments = self.manifest.segments
        return sum(file.bytes for entry in segments for file in entry.files.values())

    def info(self) -> dict[str, Any]:
        """Return what a person wants to know of a gallery, ready for JSON."""
        manifest = self.manifest
        return {
            "path": str(self.path),
            "sets": len(self),
            "elements": manifest.elements,
            "k": self.k,
            "dim": self.dim,
            "layout": manifest.layout,
            "dtype": manifest.dtype,
            "ids": manifest.id_type,
            "columns": manifest.columns,
            "segments": len(manifest.segments),
            "bytes": self.nbytes,
            "generation": manifest.generation,
            "checksum": manifest.checksum,
            "metadata": manifest.metadata,
        }
