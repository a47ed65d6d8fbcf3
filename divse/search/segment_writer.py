"""Writing one segment of a gallery: arrays and rows as they come, then made durable.

A segment may be larger than memory: only the lengths of ragged sets are kept until the end.
"""

from __future__ import annotations

import secrets
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from divse.search import durable
from divse.search.manifest import FileEntry, SegmentEntry
from divse.search.segment import CODES, EMBEDDINGS, OFFSETS, RESIDUALS, ROWS, SCALES
from divse.similarity.certified import encode


class NpyStream:
    """Writes an .npy file whose first axis grows; the header is corrected on closing."""

    def __init__(self, path: Path, row_shape: tuple[int, ...], dtype: str) -> None:
        self._row_shape, self._dtype = row_shape, np.dtype(dtype)
        self._rows = 0
        self._file = durable.open_new(path)
        try:
            self._write_header()
        except BaseException:
            self.abandon()
            raise

    def append(self, rows: np.ndarray) -> None:
        """Write rows of the agreed shape after the others."""
        self._file.write(np.ascontiguousarray(rows, dtype=self._dtype).data)
        self._rows += len(rows)

    def close(self) -> None:
        """Write the final shape. numpy pads headers so that a longer first axis still fits."""
        self._file.seek(0)
        self._write_header()
        durable.close_durably(self._file)

    def abandon(self) -> None:
        """Close the file as it is; it will be removed."""
        durable.abandon(self._file)

    def _write_header(self) -> None:
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self._rows, *self._row_shape),
        }
        np.lib.format.write_array_header_1_0(self._file, header)


class _RowsStream:
    """Writes rows.arrow, whose schema is known with the first batch."""

    def __init__(self, path: Path) -> None:
        self._file = durable.open_new(path)
        self._writer: Any = None

    def append(self, batch: Any) -> None:
        if self._writer is None:
            import pyarrow as pa

            self._writer = pa.ipc.new_file(self._file, batch.schema)
        self._writer.write_batch(batch)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        durable.close_durably(self._file)

    def abandon(self) -> None:
        durable.abandon(self._file)


class SegmentWriter:
    """Writes a new segment; `finish` makes it durable, `discard` removes it.

    With `codes`, int8 codes of the stored elements are written beside them.
    """

    def __init__(
        self,
        gallery: Path,
        number: int,
        *,
        ragged: bool,
        k: int,
        dim: int,
        dtype: str,
        codes: bool,
    ) -> None:
        self.name = f"segment-{number:06x}-{secrets.token_hex(4)}"
        self.folder = gallery / self.name
        self._ragged, self._k, self._dtype = ragged, 0 if ragged else k, dtype
        self._lengths: list[np.ndarray] = []  # of ragged sets
        self._sets = self._elements = 0
        self._streams: dict[str, NpyStream] = {}
        self._undo = ExitStack()  # closes and removes what was opened
        durable.make_folder(self.folder)
        self._undo.callback(durable.remove, self.folder)
        try:
            self._open_all(() if ragged else (k,), dim, codes)
        except BaseException:
            self.discard()
            raise

    def _open_all(self, inner: tuple[int, ...], dim: int, codes: bool) -> None:
        self._open(EMBEDDINGS, (*inner, dim), self._dtype)
        if codes:
            self._open(CODES, (*inner, dim), "int8")
            self._open(SCALES, inner, "float32")
            self._open(RESIDUALS, inner, "float32")
        self._rows = _RowsStream(self.folder / ROWS)
        self._undo.callback(self._rows.abandon)

    def _open(self, name: str, row_shape: tuple[int, ...], dtype: str) -> None:
        self._streams[name] = NpyStream(self.folder / name, row_shape, dtype)
        self._undo.callback(self._streams[name].abandon)

    def append(self, values: np.ndarray, lengths: np.ndarray, rows: Any) -> None:
        """Add sets (n, K, D) of `lengths` (n,) elements with their Arrow RecordBatch of rows."""
        if self._ragged:
            values = values[np.arange(values.shape[1]) < lengths[:, None]]
            self._k = max(self._k, int(lengths.max()))
            self._lengths.append(lengths)
        stored = values.astype(self._dtype)
        self._streams[EMBEDDINGS].append(stored)
        if CODES in self._streams:
            self._append_codes(stored)
        self._rows.append(rows)
        self._sets += len(lengths)
        self._elements += int(lengths.sum())

    def _append_codes(self, stored: np.ndarray) -> None:
        shape = stored.shape if stored.ndim == 3 else (len(stored), 1, stored.shape[-1])
        int8 = encode(torch.from_numpy(stored.reshape(shape)))
        for name, part in zip((CODES, SCALES, RESIDUALS), int8, strict=True):
            array = part.numpy()
            self._streams[name].append(array if stored.ndim == 3 else array[:, 0])

    def finish(self) -> SegmentEntry:
        """Close and flush every file and return the segment's entry for the manifest."""
        if self._ragged:
            self._open(OFFSETS, (), "int64")
            offsets = np.concatenate([[0], *self._lengths]).cumsum(dtype=np.int64)
            self._streams[OFFSETS].append(offsets)
        for stream in self._streams.values():
            stream.close()
        self._rows.close()
        files = {}
        for path in sorted(self.folder.iterdir()):
            files[path.name] = FileEntry(path.stat().st_size, durable.checksum_file(path))
        durable.sync_folder(self.folder)
        durable.sync_folder(self.folder.parent)
        return SegmentEntry(self.name, self._sets, self._elements, self._k, files)

    def discard(self) -> None:
        """Remove what was written."""
        self._undo.close()
