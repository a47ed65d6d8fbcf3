"""One writer at a time: a lock on a file in the gallery's folder.

The operating system holds the lock for the process and takes it back when the process dies, so a
killed writer leaves no stale lock, only the empty file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from divse.search.manifest import GalleryError

LOCK_NAME = "writer.lock"
WAIT_SECONDS = 10.0


@contextmanager
def writer_lock(folder: Path) -> Iterator[None]:
    """Hold the gallery's lock; GalleryError if another writer keeps it for `WAIT_SECONDS`."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder / LOCK_NAME, timeout=WAIT_SECONDS):
            yield
    except Timeout:
        raise GalleryError(
            f"{folder}: another process is writing to this gallery; try again when it is done"
        ) from None
