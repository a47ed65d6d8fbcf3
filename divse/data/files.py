"""Find the files of a data set, and name exactly those that are missing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

NAMED = 5  # missing files that an error names
LOOKED_FOR = 100  # files of which one must be there for a folder to be the right one


class MissingFiles(FileNotFoundError):
    """Files that a data set needs and that are not there.

    paths: every one of them
    total: how many files of this kind are needed
    """

    def __init__(self, message: str, paths: Sequence[Path], total: int) -> None:
        super().__init__(message)
        self.paths, self.total = list(paths), total


def require(paths: Iterable[Path], what: str, hint: str = "", notes: Sequence[str] = ()) -> None:
    """Raise MissingFiles unless all paths are files.

    what: "pictures of dataset_coco.json"
    hint: what to do
    notes: one a path, shown behind it
    """
    paths = list(paths)
    listed: dict[Path, set[str]] = {}  # a listing a folder: a look at each file takes minutes
    missing = []
    for number, path in enumerate(paths):
        if path.parent not in listed:
            listed[path.parent] = names_in(path.parent)
        if path.name not in listed[path.parent]:
            missing.append(number)
    if not missing:
        return
    shown = [f"{paths[i]} ({notes[i]})" if notes else str(paths[i]) for i in missing[:NAMED]]
    more = len(missing) - NAMED
    raise MissingFiles(
        f"{len(missing)} of {len(paths)} {what} are missing: {'; '.join(shown)}"
        + (f"; and {more} more" if more > 0 else "")
        + (f" ({hint})" if hint else ""),
        [paths[i] for i in missing],
        len(paths),
    )


def names_in(folder: Path) -> set[str]:
    """Names of what lies in a folder; none if it is not there."""
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def first_file(folders: Iterable[Path], patterns: Iterable[str]) -> Path | None:
    """Return the first file that matches a pattern in one of the folders; None if none does."""
    patterns = list(patterns)
    for folder in folders:
        for pattern in patterns:
            found = sorted(path for path in folder.glob(pattern) if path.is_file())
            if found:
                return found[0]
    return None


def folder_of(folders: Sequence[Path], names: Sequence[str]) -> Path:
    """The folder that holds files of these names; the first if none does, for errors to name."""
    for folder in folders:
        if any((folder / name).is_file() for name in names[:LOOKED_FOR]):
            return folder
    return folders[0]


def read_json(path: Path) -> Any:
    """Read a JSON file; say which file it is if it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}): is it whole?") from None


def read_lines(path: Path) -> list[str]:
    """Lines of a text file, without their ends; a last empty one does not count."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}): convert it") from None
    return [line.strip() for line in text.rstrip("\r\n").split("\n")]


def data_root(path: str | Path | None, what: str) -> Path:
    """Return the path of a data set; refuse none at all and one that is not there."""
    if path is None:
        raise ValueError(f"{what} need the path of their folder, got none")
    root = Path(path)
    if not root.exists():
        raise FileNotFoundError(f"no file or folder at {root}")
    return root
