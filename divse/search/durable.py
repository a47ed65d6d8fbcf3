"""Writes that survive a power cut: a file is the old one or the new one, never half of each."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

CHUNK = 1 << 22  # 4 MiB: large enough for the disk's rate, small enough for a smooth progress bar


def sync_file(path: Path) -> None:
    """Flush a file's bytes to the disk."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries (names), without which a rename may be lost."""
    if os.name != "posix":  # elsewhere a folder cannot be opened, and renames are journalled
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes) -> None:
    """Put `content` at `path` in one step: readers see the old bytes or the new ones."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
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
