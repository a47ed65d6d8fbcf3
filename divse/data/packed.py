"""Features of many items in one memory-mapped file, whatever number of rows each item has.

`<name>.npy` holds float16 (total, C); the rows of item i are [offsets[i], offsets[i + 1]) of
`<name>.offsets.npy`. A file with its name is whole: while it is written it is called
`<name>.partial.npy`, and a run that was stopped goes on where it was.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

Lengths = NDArray[np.int64]
Block = tuple[NDArray[np.float16], Lengths]  # rows (n, C) of some items, and how many each has
SYNC_BYTES = 2**24  # work between two points that a stopped run can go on from


class Packed:
    """Read access to packed features.

    values: float16 (total, C), usually memory-mapped
    offsets: int64 (I + 1,)
    """

    def __init__(self, values: NDArray[np.float16], offsets: Lengths) -> None:
        self.values, self.offsets = values, offsets

    @classmethod
    def open(cls, path: Path) -> Packed:
        """Memory-map a file."""
        return cls(np.load(path, mmap_mode="r"), np.load(offsets_path(path)))

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.offsets) - 1

    def item(self, index: int) -> NDArray[np.float16]:
        """Rows of one item, (n, C)."""
        begin, end = self.offsets[index : index + 2]
        return self.values[begin:end]

    def take(self, items: Lengths) -> Block:
        """Rows (B, N, C) of some items, padded with zeros, and lengths (B,)."""
        lengths = self.offsets[items + 1] - self.offsets[items]
        rows = np.zeros((len(items), int(lengths.max()), self.values.shape[1]), np.float16)
        for target, index, length in zip(rows, items, lengths, strict=True):
            target[:length] = self.item(index)
        return rows, lengths


def offsets_path(path: Path) -> Path:
    """Where the offsets of a file lie."""
    return path.with_suffix(".offsets.npy")


def write_packed(path: Path, blocks_from: Callable[[int], Iterable[Block]]) -> Packed:
    """Write the blocks that `blocks_from(done)` gives, or open the file if it is there.

    `done` is the number of items that an earlier, stopped run has written. Processes that want
    the same file wait for the first.
    """
    from filelock import FileLock

    if path.exists():  # perhaps where nothing can be written, not even a lock
        return Packed.open(path)
    with FileLock(path.with_suffix(".lock")):
        if path.exists():
            return Packed.open(path)
        with _Writer(path) as writer:
            for rows, lengths in blocks_from(writer.done):
                writer.append(rows, lengths)
            writer.finish()
    return Packed.open(path)


class _Writer:
    """Appends rows to the partial file and lengths, raw int64, to a file beside it.

    Lengths are written after the rows they count are on the disk, so they tell what is whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.partial = path.with_suffix(".partial.npy")
        self.counted = path.with_suffix(".partial.lengths")
        self.lengths: list[int] = []
        self.channels = 0
        self._unsynced, self._recorded = 0, 0

    def __enter__(self) -> _Writer:
        self._take_up()
        self._rows: BinaryIO = self.partial.open("r+b" if self.partial.exists() else "w+b")
        self._rows.seek(0, os.SEEK_END)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._rows.closed:
            self._sync()
            self._rows.close()

    @property
    def done(self) -> int:
        """Number of items written."""
        return len(self.lengths)

    def append(self, rows: NDArray[np.float16], lengths: Lengths) -> None:
        """Write rows (n, C) of items with these lengths."""
        if not self.channels:
            self.channels = rows.shape[1]
            self._write_header(0)
        if len(rows) != lengths.sum() or rows.shape[1] != self.channels:
            raise ValueError(
                f"a block must have {int(lengths.sum())} rows of {self.channels} channels, as its "
                f"lengths and the blocks before say; got {rows.shape}"
            )
        self._rows.write(np.ascontiguousarray(rows, dtype="<f2").data)
        self.lengths += lengths.tolist()
        self._unsynced += rows.nbytes
        if self._unsynced >= SYNC_BYTES:
            self._sync()

    def finish(self) -> None:
        """Give the file its name; the last step, so that a name means a whole file."""
        if not self.lengths:
            raise ValueError(f"{self.path}: no items to write")
        self._write_header(sum(self.lengths))
        self._sync()
        self._rows.close()
        np.save(offsets_path(self.path), np.cumsum([0, *self.lengths], dtype=np.int64))
        self.partial.replace(self.path)
        self.counted.unlink()

    def _take_up(self) -> None:
        """Keep the items of a stopped run whose rows are all there."""
        if not (self.partial.exists() and self.counted.exists() and self.counted.stat().st_size):
            self.partial.unlink(missing_ok=True)
            self.counted.unlink(missing_ok=True)
            return
        with self.partial.open("rb") as file:
            np.lib.format.read_magic(file)
            (_, self.channels), _, _ = np.lib.format.read_array_header_1_0(file)
            start = file.tell()
        lengths = np.fromfile(self.counted, np.int64)
        row = 2 * self.channels
        ends = start + row * np.cumsum(lengths)
        self.lengths = lengths[ends <= self.partial.stat().st_size].tolist()
        os.truncate(self.partial, start + row * sum(self.lengths))
        os.truncate(self.counted, 8 * len(self.lengths))
        self._recorded = len(self.lengths)

    def _write_header(self, total: int) -> None:
        """Write the header of an array (total, C); numpy leaves room for the digits of total."""
        self._rows.seek(0)
        header = {"descr": "<f2", "fortran_order": False, "shape": (total, self.channels)}
        np.lib.format.write_array_header_1_0(self._rows, header)
        self._rows.seek(0, os.SEEK_END)

    def _sync(self) -> None:
        self._rows.flush()
        os.fsync(self._rows.fileno())
        with self.counted.open("ab") as file:
            np.array(self.lengths[self._recorded :], np.int64).tofile(file)
        self._recorded, self._unsynced = len(self.lengths), 0
