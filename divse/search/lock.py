"""One writer at a time: a lock on a file in the gallery's folder.

The operating system holds the lock for the process and takes it back when the process dies, so a
killed writer leaves no stale lock, only the empty file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from divse.search.manifest import GalleryError

if TYPE_CHECKING:
    from filelock import BaseFileLock

LOCK_NAME = "writer.lock"
WAIT_SECONDS = 10.0


class FolderGone(GalleryError):
    """The folder was removed before its lock was held."""


@contextmanager
def writer_lock(folder: Path) -> Iterator[None]:
    """Hold the gallery's lock; GalleryError if another writer keeps it for `WAIT_SECONDS`."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK_NAME, timeout=WAIT_SECONDS)
    try:
        lock.acquire()
        while not _is_in_place(lock):  # a build that failed removed the file while we waited
            lock.release()
            lock.acquire()
    except FileNotFoundError:
        raise FolderGone(f"{folder} is not there any more") from None
    except Timeout:
        raise GalleryError(
            f"{folder}: another process is writing to this gallery; try again when it is done"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _is_in_place(lock: BaseFileLock) -> bool:
    """Whether the file that is locked is the one that others would find."""
    descriptor = lock._context.lock_file_fd
    if os.name != "posix" or descriptor is None:
        return True
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(lock.lock_file))
    except FileNotFoundError:
        return False
