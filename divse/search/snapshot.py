"""One committed state of a gallery, opened for reading through memory maps."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from divse.search.manifest import GalleryError, Manifest
from divse.search.mapping import MappedFile, map_files
from divse.search.rows import ID, as_ids, first_duplicate
from divse.search.segment import Segment
from divse.search.writing import Progress
from divse.sets import EmbeddingSets

_ATTEMPTS = 20  # to open a gallery that a writer changes again and again meanwhile


class Snapshot:
    """N sets of unit vectors as they were when it was opened; later writers do not disturb it.

    Positions 0..N-1 number the sets that are in the gallery, in order of insertion.
    """

    def __init__(self, path: Path, manifest: Manifest, *, index: bool = True) -> None:
        """Map every file that `manifest` names; most callers want `open(path)`."""
        self.path, self.manifest = path, manifest
        self.segments: list[Segment] = []
        stored = manifest.index
        without = [stored.shard] if stored is not None and not index else []
        start = 0
        for entry in manifest.segments:
            self.segments.append(Segment.open(path, manifest, entry, start, without))
            start += entry.live_sets
        self._starts = np.array([segment.start for segment in self.segments], dtype=np.int64)
        self.index_files: dict[str, MappedFile] = {}
        if stored is not None and index:
            self.index_files = map_files(path / stored.name, stored.files)

    @classmethod
    def open(cls, path: str | Path, *, index: bool = True) -> Self:
        """Open a gallery: its manifest, file sizes and headers are checked, contents are not.

        Without `index`, files of the index are not looked at: they may be damaged.
        """
        folder = Path(path)
        manifest = Manifest.read(folder)
        for _ in range(_ATTEMPTS):
            try:
                return cls(folder, manifest, index=index)
            except GalleryError:
                # A writer may have replaced the state and removed its files since it was read.
                now = Manifest.read(folder)
                if now.checksum == manifest.checksum:
                    raise
                manifest = now
        return cls(folder, manifest, index=index)

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

    @cached_property
    def rows(self) -> Any:
        """Ids and columns as one Arrow table, in order of position; memory-mapped as far as may be.

        Segments with removed sets are gathered into memory at the first use.
        """
        import pyarrow as pa

        return pa.concat_tables([segment.live_rows() for segment in self.segments])

    @property
    def schema(self) -> Any:
        """Arrow schema of ids and columns."""
        return self.segments[0].rows.schema

    @cached_property
    def id_column(self) -> Any:
        """Ids as an Arrow ChunkedArray, in order of position."""
        import pyarrow as pa

        return pa.concat_tables([segment.live_rows([ID]) for segment in self.segments]).column(ID)

    @property
    def ids(self) -> np.ndarray:
        """The id of every set (N,): int64, or str objects."""
        return np.asarray(self.id_column.to_numpy())

    @property
    def columns(self) -> dict[str, Any]:
        """The user's columns by name, each an Arrow ChunkedArray of N values."""
        return {name: self.rows.column(name) for name in self.manifest.columns}

    def take_rows(self, positions: np.ndarray) -> list[dict[str, Any]]:
        """Return id and columns of the sets at `positions` (n,), one dict each."""
        return list(self._take(positions, self.schema.names).to_pylist())

    def take_ids(self, positions: np.ndarray) -> np.ndarray:
        """Return the ids of the sets at `positions` (any shape), in that shape."""
        if self.manifest.id_type == "int64" and len(self.segments) == 1:
            flat = np.asarray(positions, dtype=np.int64).reshape(-1)
            _check_positions(flat, len(self))
            taken = self.segments[0].take_ids(flat)
        else:
            taken = self._take(positions, [ID]).column(ID).to_numpy()
        return np.asarray(taken).reshape(np.shape(positions))

    def _take(self, positions: np.ndarray, columns: list[str]) -> Any:
        """Columns of the sets at `positions`, as an Arrow table; only these rows are gathered."""
        import pyarrow as pa

        flat = np.asarray(positions, dtype=np.int64).reshape(-1)
        _check_positions(flat, len(self))
        if len(self.segments) == 1:
            return self.segments[0].take_rows(flat, columns)
        parts, places = [self.segments[0].rows.select(columns).slice(0, 0)], [flat[:0]]
        for segment, mine in self._owners(flat):
            parts.append(segment.take_rows(flat[mine] - segment.start, columns))
            places.append(mine)
        return pa.concat_tables(parts).take(np.argsort(np.concatenate(places)))

    def with_ids(self, ids: Any, *, missing_ok: bool = False) -> np.ndarray:
        """Return the mask (N,) of the sets with these ids; KeyError names unknown ones."""
        import pyarrow.compute as pc

        wanted = as_ids(ids, self.schema.field(ID).type)
        mask = pc.is_in(self.id_column, value_set=wanted)  # memory for the ids asked for, not all
        lost = wanted.filter(pc.invert(pc.is_in(wanted, value_set=self.id_column.filter(mask))))
        if len(lost) and not missing_ok:
            names = ", ".join(map(repr, lost[:5].to_pylist())) + (", ..." if len(lost) > 5 else "")
            raise KeyError(f"no sets with these ids in the gallery: {names} ({len(lost)} in all)")
        return np.asarray(mask.to_numpy())

    def sets(self, positions: np.ndarray | None = None) -> EmbeddingSets:
        """Return the sets at `positions` (n,), or all of them, as numpy EmbeddingSets.

        All sets of a uniform gallery in one segment come as the memory map itself; anything else
        is gathered into memory. `blocks` goes over a gallery of any size.
        """
        if positions is None:
            if len(self.segments) == 1 and not self.ragged:
                return self.segments[0].block(0, len(self))
            positions = np.arange(len(self))
        positions = np.asarray(positions, dtype=np.int64)
        _check_positions(positions, len(self))
        if len(self.segments) == 1:
            return EmbeddingSets(*self.segments[0].take(positions))
        lengths = np.empty(len(positions), dtype=np.int64)
        values = np.zeros((len(positions), self.k, self.dim), dtype=self.manifest.dtype)
        for segment, mine in self._owners(positions):
            taken, sizes = segment.take(positions[mine] - segment.start)
            values[mine, : taken.shape[1]] = taken
            lengths[mine] = taken.shape[1] if sizes is None else sizes
        return EmbeddingSets(values, lengths if self.ragged else None)

    def lengths(self, positions: np.ndarray) -> np.ndarray:
        """Return the number of elements of the sets at `positions` (n,), as (n,) int64."""
        sizes = np.empty(len(positions), dtype=np.int64)
        for segment, mine in self._owners(positions):
            sizes[mine] = segment.lengths(positions[mine] - segment.start)
        return sizes

    def _owners(self, positions: np.ndarray) -> Iterator[tuple[Segment, np.ndarray]]:
        """Yield each segment that owns some of the positions, and which of them."""
        owner = np.searchsorted(self._starts, positions, side="right") - 1
        for index in np.unique(owner):
            yield self.segments[index], np.flatnonzero(owner == index)

    def blocks(self, block_bytes: int = 1 << 27) -> Iterator[tuple[int, EmbeddingSets]]:
        """Yield (position of the first set, sets) over the gallery, in blocks of bounded memory.

        Blocks of a uniform gallery are memory-mapped views; ragged sets are padded.
        """
        itemsize = np.dtype(self.manifest.dtype).itemsize
        step = max(1, block_bytes // (self.k * self.dim * itemsize))
        for segment in self.segments:
            for first in range(0, segment.sets, step):
                last = min(first + step, segment.sets)
                yield segment.start + first, segment.block(first, last)

    def set_sizes(self) -> np.ndarray:
        """Return the number of elements of each set (N,) int64."""
        return np.concatenate([s.lengths(np.arange(s.sets)) for s in self.segments])

    def verify(self, progress: Progress | None = None) -> None:
        """Read every byte and check it; GalleryError names the first file that is not as written.

        `progress` hears the bytes read at each step, of `nbytes` in all.
        """
        for file in self._files():
            file.verify(progress)
        for segment in self.segments:
            segment.verify()
        if (twice := first_duplicate(self.id_column)) is not None:
            raise GalleryError(f"{self.path}: id {twice!r} occurs twice")

    @property
    def nbytes(self) -> int:
        """Bytes of all files that the manifest names."""
        return sum(file.entry.bytes for file in self._files())

    def _files(self) -> Iterator[MappedFile]:
        """Every file that the manifest names."""
        for segment in self.segments:
            yield from segment.files.values()
        yield from self.index_files.values()

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
            "removed": sum(s.removed.sets for s in manifest.segments if s.removed),
            "codes": manifest.codes,
            "index": None if manifest.index is None else manifest.index.spec,
            "bytes": self.nbytes,
            "generation": manifest.generation,
            "checksum": manifest.checksum,
            "metadata": manifest.metadata,
        }


def _check_positions(positions: np.ndarray, count: int) -> None:
    if positions.size and not 0 <= positions.min() <= positions.max() < count:
        raise IndexError(
            f"positions {positions.min()} to {positions.max()}, the gallery has 0 to {count - 1}"
        )
