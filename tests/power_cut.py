"""Records what an operation does to the disk and rebuilds what a power cut may leave of it.

The model is harsher than file systems are. Until a file is flushed, each of its writes may be lost,
torn, or kept while earlier ones are lost; until a folder is flushed, each new, changed or removed
name in it may be lost on its own. Only a flush (fsync) makes what came before it certain.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from divse.search import durable

Tree = dict  # of bytes (files) and Trees (folders), by name


@dataclass
class Inode:
    """A file's bytes: those that are certain, and the writes (offset, bytes) that are not."""

    flushed: bytes = b""
    pending: list[tuple[int, bytes]] = field(default_factory=list)

    def left(self, choose: Random | None, keep: bool) -> bytes:
        """What a cut leaves: all writes or none, or as `choose` draws."""
        content = bytearray(self.flushed)
        for offset, data in self.pending:
            if choose is not None:
                keep = choose.random() < 0.5
                if keep and choose.random() < 0.3:
                    data = data[: choose.randrange(len(data) + 1)]
            if keep:
                content.extend(bytes(max(0, offset + len(data) - len(content))))
                content[offset : offset + len(data)] = data
        return bytes(content)


class Disk:
    """A folder tree as the disk knows it: names that are certain, and changes that are not."""

    def __init__(self) -> None:
        self.names: dict[Path, dict[str, Inode | None]] = {}  # None: a folder
        self.changes: dict[Path, list[tuple[str, Inode | None, bool]]] = {}

    def add_folder(self, path: Path) -> None:
        self.names[path], self.changes[path] = {}, []

    def change(self, path: Path, inode: Inode | None, present: bool) -> None:
        self.changes[path.parent].append((path.name, inode, present))

    def flush_folder(self, path: Path) -> None:
        for name, inode, present in self.changes[path]:
            _apply(self.names[path], name, inode, present)
        self.changes[path].clear()

    def leave(self, folder: Path, choose: Random | None, keep: bool) -> Tree:
        """What a cut leaves of a folder: the bytes of files and the trees of folders, by name."""
        names = dict(self.names[folder])
        for name, inode, present in self.changes[folder]:
            if choose.random() < 0.5 if choose is not None else keep:
                _apply(names, name, inode, present)
        return {
            name: self.leave(folder / name, choose, keep)
            if inode is None
            else inode.left(choose, keep)
            for name, inode in sorted(names.items())
        }


def _apply(names: dict[str, Inode | None], name: str, inode: Inode | None, present: bool) -> None:
    if present:
        names[name] = inode
    else:
        names.pop(name, None)


class Recorder:
    """Stands in for the functions of divse.search.durable; after each step `cut` may be called."""

    def __init__(self, root: Path, on_step) -> None:
        self.disk = Disk()
        self.disk.add_folder(root)
        self.current: dict[Path, Inode | None] = {}
        self._files: dict[int, Inode] = {}
        self._on_step = on_step

    def make_folder(self, path: Path) -> None:
        path.mkdir()
        self.disk.add_folder(path)
        self._name(path, None)

    def open_new(self, path: Path) -> io.BufferedWriter:
        file = _RecordedFile(io.FileIO(path, "x"), self._on_step)
        self._files[id(file)] = file.inode
        self._name(path, file.inode)
        return file

    def close_durably(self, file: _RecordedFile) -> None:
        file.close()
        file.inode.flushed = file.inode.left(None, True)
        file.inode.pending.clear()
        self._on_step()

    def rename(self, old: Path, new: Path) -> None:
        old.replace(new)
        inode = self.current.pop(old)
        self.current[new] = inode
        self.disk.change(new, inode, True)
        self.disk.change(old, inode, False)
        self._on_step()

    def sync_folder(self, path: Path) -> None:
        self.disk.flush_folder(path)
        self._on_step()

    def remove(self, path: Path) -> None:
        if not path.exists():
            return
        if path.is_dir():
            for inside in path.iterdir():
                self.remove(inside)
            path.rmdir()
        else:
            path.unlink()
        self.disk.change(path, None, False)
        self.current.pop(path, None)
        self._on_step()

    def _name(self, path: Path, inode: Inode | None) -> None:
        self.current[path] = inode
        self.disk.change(path, inode, True)
        self._on_step()


class _RecordedFile(io.BufferedWriter):
    def __init__(self, raw: io.FileIO, on_step) -> None:
        super().__init__(raw)
        self.inode, self._on_step = Inode(), on_step

    def write(self, data) -> int:
        self.inode.pending.append((self.tell(), bytes(data)))
        written = super().write(data)
        self._on_step()
        return written


@contextmanager
def recorded(root: Path, on_step) -> Iterator[Recorder]:
    """Record what divse.search does to `root`, an empty folder, until the end of the block."""
    recorder = Recorder(root, on_step)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("make_folder", "open_new", "close_durably", "rename", "sync_folder", "remove"):
            patch.setattr(durable, name, getattr(recorder, name))
        yield recorder


def cuts(disk: Disk, root: Path, seed: int, draws: int = 2) -> Iterator[Tree]:
    """Yield what a power cut at this moment may leave of `root`: nothing unsure, all, and draws."""
    yield disk.leave(root, None, False)
    yield disk.leave(root, None, True)
    for number in range(draws):
        yield disk.leave(root, Random(seed * 100 + number), False)


def write_tree(tree: Tree, target: Path) -> Path:
    """Write a tree to a new folder."""
    target.mkdir()
    for name, inside in tree.items():
        if isinstance(inside, bytes):
            (target / name).write_bytes(inside)
        else:
            write_tree(inside, target / name)
    return target
