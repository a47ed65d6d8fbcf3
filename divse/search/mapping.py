"""Files of a gallery as memory maps that need neither their name nor a descriptor any more.

A map lives on when the file is removed, so a snapshot can read and verify what a later writer swept
away; and as no descriptor is kept, thousands of segments can be open at once.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from divse.search.durable import CHUNK, checksum_file
from divse.search.manifest import FileEntry, GalleryError

HEADER_START = 10  # bytes of an .npy file before its header: magic, version 1.0, header's size
ARROW_START = 8  # bytes of an Arrow file before its messages: magic, padding
DICTIONARY_BATCH, RECORD_BATCH = 2, 3  # MessageHeader of the Arrow format


@dataclass(frozen=True)
class MappedFile:
    """A file that the manifest names: `data` is an Arrow buffer of all its bytes."""

    path: Path
    entry: FileEntry
    data: Any

    def verify(self, progress: Callable[[int], object] | None = None) -> None:
        """Compare the checksum of every byte with the manifest's."""
        try:
            # reading is told of bytes that the disk cannot give; a map would end the process
            checksum = checksum_file(self.path, progress)
        except FileNotFoundError:  # removed by a later writer
            checksum = self._checksum(progress)
        if checksum != self.entry.blake2b:
            raise GalleryError(f"{self.path} is damaged: its checksum is not the recorded one")

    def _checksum(self, progress: Callable[[int], object] | None) -> str:
        digest = hashlib.blake2b(digest_size=32)
        view = memoryview(self.data)
        for start in range(0, len(view), CHUNK):
            digest.update(view[start : start + CHUNK])
            if progress is not None:
                progress(len(view[start : start + CHUNK]))
        return digest.hexdigest()


def map_files(folder: Path, files: dict[str, FileEntry]) -> dict[str, MappedFile]:
    """Map these files of a folder."""
    return {name: map_file(folder / name, entry) for name, entry in files.items()}


def map_file(path: Path, entry: FileEntry) -> MappedFile:
    """Map a file; refuse one that is missing, a link out of the gallery, or not of its size."""
    import pyarrow as pa

    if path.is_symlink() or path.parent.is_symlink():
        raise GalleryError(f"{path} is a link; a gallery holds plain files only")
    try:
        if not path.is_file():
            raise FileNotFoundError(path)
        with pa.memory_map(str(path)) as source:
            data = source.read_buffer()
    except FileNotFoundError:
        raise GalleryError(f"{path} is missing: the gallery is not whole") from None
    if data.size != entry.bytes:
        word = "truncated" if data.size < entry.bytes else "too long"
        raise GalleryError(f"{path} is {word}: {data.size} bytes, the manifest says {entry.bytes}")
    return MappedFile(path, entry, data)


def as_array(file: MappedFile, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """View an .npy file that must have this shape and dtype.

    Its header is compared with the one that is expected, never evaluated.
    """
    expected = np.dtype(dtype)
    start = bytes(file.data[:HEADER_START])
    first = HEADER_START + int.from_bytes(start[8:], "little")
    header = bytes(file.data[len(start) : min(first, file.data.size)])
    descr = np.lib.format.dtype_to_descr(expected)
    right = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    if start[:8] != b"\x93NUMPY\x01\x00" or header.strip() != right.encode():
        raise GalleryError(
            f"{file.path} is damaged: its header is {header[:200]!r}, "
            f"the manifest says {dtype} {shape}: {right}"
        )
    count, left = math.prod(shape), file.data.size - first
    if left != expected.itemsize * count:
        raise GalleryError(f"{file.path} is damaged: {left} bytes are not {dtype} {shape}")
    return np.frombuffer(file.data, expected, count, first).reshape(shape)


def payload(file: MappedFile) -> int:
    """Bytes of an .npy file after its header."""
    start = bytes(file.data[:HEADER_START])
    left = int(file.data.size) - HEADER_START - int.from_bytes(start[8:], "little")
    if left < 0:
        raise GalleryError(f"{file.path} is damaged: its header is longer than the file")
    return left


def as_table(file: MappedFile) -> Any:
    """View an Arrow IPC file as a table; none of it is copied.

    Its messages are read one after another, as of a stream: what is looked at for compression is
    what is read, wherever the file's footer points to.
    """
    import pyarrow as pa

    try:
        pa.ipc.open_file(file.data)  # has a footer, for other readers
        messages = file.data.slice(ARROW_START)
        for message in pa.ipc.MessageReader.open_stream(messages):
            if _is_compressed(memoryview(message.metadata)):
                raise GalleryError(
                    f"{file.path} is compressed, which could unpack to any size: rows of a "
                    "gallery are stored uncompressed"
                )
        table = pa.ipc.open_stream(messages).read_all()
        table.validate(full=True)  # some ten ms a million rows; what is invalid could crash readers
    except (pa.ArrowException, OSError, struct.error, UnicodeDecodeError) as error:
        raise GalleryError(f"{file.path} is damaged: {error}") from None
    return table


def _is_compressed(message: memoryview) -> bool:
    """Whether the buffers of an Arrow message (a flatbuffer, checked by pyarrow) are compressed.

    Message.header_type is field 1, Message.header field 2; DictionaryBatch.data, a RecordBatch, is
    field 1; RecordBatch.compression is field 3 and absent if there is none.
    """
    root = _follow(message, 0)
    kind, header = _field(message, root, 1), _field(message, root, 2)
    if not kind or not header or message[kind] not in (DICTIONARY_BATCH, RECORD_BATCH):
        return False
    batch = _follow(message, header)
    if message[kind] == DICTIONARY_BATCH:
        batch = _follow(message, _field(message, batch, 1))
    return _field(message, batch, 3) != 0


def _follow(buffer: memoryview, at: int) -> int:
    """Where the table lies that the offset at `at` points to."""
    return at + int(struct.unpack_from("<I", buffer, at)[0])


def _field(buffer: memoryview, table: int, index: int) -> int:
    """Where a field of a flatbuffer's table lies, 0 if it is absent."""
    vtable = table - struct.unpack_from("<i", buffer, table)[0]
    slot = 4 + 2 * index
    if slot >= struct.unpack_from("<H", buffer, vtable)[0]:
        return 0
    offset = struct.unpack_from("<H", buffer, vtable + slot)[0]
    return table + offset if offset else 0
