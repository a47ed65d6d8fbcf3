"""Every change of a gallery's folder goes through here: writes that survive a power cut.

A file is written under a name of its own, flushed, and only then named by the manifest, which is
itself replaced in one step. These few functions are all that ever touches the disk, so a test can
record them and rebuild every state that a power cut may leave.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

CHUNK = 1 << 22  # 4 MiB: large enough for the disk's rate, small enough for a smooth progress bar


def make_folder(path: Path) -> None:
    """Make a folder that does not exist yet."""
    path.mkdir()


def make_folders(path: Path) -> None:
    """Make a folder and those above it that are missing; their names are flushed."""
    for level in reversed([path, *path.parents]):
        if not level.exists():
            with contextlib.suppress(FileExistsError):  # somebody else was faster
                make_folder(level)
            try:
                sync_folder(level.parent)
            except OSError:
                with contextlib.suppress(OSError):
                    level.rmdir()
                raise


def open_new(path: Path) -> BinaryIO:
    """Open a file that does not exist yet for writing; `close_durably` ends it."""
    return open(path, "xb")


def close_durably(file: BinaryIO) -> None:
    """Flush a file's bytes to the disk and close it."""
    try:
        file.flush()
        _flush(file.fileno())
    finally:
        file.close()


def abandon(file: BinaryIO) -> None:
    """Close a file that will be removed; bytes that the disk has no room for do not matter."""
    with contextlib.suppress(OSError):
        file.close()


def rename(old: Path, new: Path) -> None:
    """Give a file another name, in place of what had it."""
    os.replace(old, new)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries (names), without which a rename may be lost."""
    if os.name != "posix":  # elsewhere a folder cannot be opened, and renames are journalled
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _flush(descriptor)
    finally:
        os.close(descriptor)


def _flush(descriptor: int) -> None:
    if sys.platform == "darwin":  # there fsync leaves bytes in the drive's own memory
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def remove(path: Path) -> None:
    """Remove a file, or a folder and all in it, as far as possible: nothing depends on it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    # On Windows a file that a reader maps cannot be removed; a later writer will do it.
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def write_new(path: Path, content: bytes) -> None:
    """Write a new file and flush it; its name is flushed with its folder."""
    file = open_new(path)
    try:
        file.write(content)
    except BaseException:
        file.close()
        raise
    close_durably(file)


def replace_file(path: Path, content: bytes) -> None:
    """Put `content` at `path` in one step: readers see the old bytes or the new ones."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    remove(temporary)
    try:
        write_new(temporary, content)
        rename(temporary, path)
    except BaseException:
        remove(temporary)
        raise
    sync_folder(path.parent)


def checksum_bytes(content: bytes) -> str:
    """BLAKE2b-256 of a byte string, in hex."""
    return hashlib.blake2b(content, digest_size=32).hexdigest()


def checksum_file(path: Path, progress: Callable[[int], object] | None = None) -> str:
    """BLAKE2b-256 of a file, in hex, read in chunks; `progress` hears the bytes of each chunk."""
    digest = hashlib.blake2b(digest_size=32)
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            if progress is not None:
                progress(len(chunk))
    return digest.hexdigest()
