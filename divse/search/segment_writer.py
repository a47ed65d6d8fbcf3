"""Writing one segment of a gallery: arrays and rows as they come, then made durable.

A segment may be larger than memory: only the lengths of ragged sets are kept until the end.
"""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from divse.search.durable import checksum_file, sync_file, sync_folder
from divse.search.manifest import FileEntry, SegmentEntry
from divse.search.segment import EMBEDDINGS, OFFSETS, ROWS


class NpyStream:
    """Writes an .npy file whose first axis grows; the header is corrected on closing."""

    def __init__(self, path: Path, row_shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._row_shape, self._dtype = row_shape, dtype
        self._rows = 0
        self._file: BinaryIO = open(path, "wb")  # noqa: SIM115 - closed by close()
        self._write_header()

    def append(self, rows: np.ndarray) -> None:
        """Write rows of the agreed shape after the others."""
        self._file.write(np.ascontiguousarray(rows, dtype=self._dtype).data)
        self._rows += len(rows)

    def close(self) -> None:
        """Write the final shape. numpy pads headers so that a longer first axis still fits."""
        if self._file.closed:
            return
        self._file.seek(0)
        self._write_header()
        self._file.close()

    def _write_header(self) -> None:
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self._rows, *self._row_shape),
        }
        np.lib.format.write_array_header_1_0(self._file, header)


class SegmentWriter:
    """Writes a new segment; `finish` makes it durable, `discard` removes it."""

    def __init__(
        self, gallery: Path, number: int, *, ragged: bool, k: int, dim: int, dtype: str
    ) -> None:
        self.name = f"segment-{number:06x}-{secrets.token_hex(4)}"
        self.folder = gallery / self.name
        self.folder.mkdir()
        self._ragged, self._k = ragged, 0 if ragged else k
        row_shape = (dim,) if ragged else (k, dim)
        self._embeddings = NpyStream(self.folder / EMBEDDINGS, row_shape, np.dtype(dtype))
        self._lengths: list[np.ndarray] = []
        self._sets = self._elements = 0
        self._rows: Any = None

    def append(self, values: np.ndarray, lengths: np.ndarray, rows: Any) -> None:
        """Add sets (n, K, D) of `lengths` (n,) elements with their Arrow RecordBatch of rows."""
        if self._ragged:
            values = values[np.arange(values.shape[1]) < lengths[:, None]]
            self._k = max(self._k, int(lengths.max()))
        self._embeddings.append(values)
        self._lengths.append(lengths)
        self._sets += len(lengths)
        self._elements += int(lengths.sum())
        if self._rows is None:
            import pyarrow as pa

            self._rows = pa.ipc.new_file(str(self.folder / ROWS), rows.schema)
        self._rows.write_batch(rows)

    def finish(self) -> SegmentEntry:
        """Close and flush every file and return the segment's entry for the manifest."""
        self._close()
        if self._ragged:
            offsets = np.concatenate([[0], *self._lengths]).cumsum(dtype=np.int64)
            np.save(self.folder / OFFSETS, offsets, allow_pickle=False)
        files = {}
        for path in sorted(self.folder.iterdir()):
            sync_file(path)
            files[path.name] = FileEntry(path.stat().st_size, checksum_file(path))
        sync_folder(self.folder)
        sync_folder(self.folder.parent)
        return SegmentEntry(self.name, self._sets, self._elements, self._k, files)

    def discard(self) -> None:
        """Remove what was written."""
        self._close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _close(self) -> None:
        self._embeddings.close()
        if self._rows is not None:
            self._rows.close()
