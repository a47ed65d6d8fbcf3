"""Shards: which split a file belongs to by its name, and which of a numbered series are missing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from divse.data.captions import SPLIT_NAMES
from divse.data.files import require

NUMBERED = re.compile(r"(?P<before>.*?)(?P<number>\d+)(?:-of-(?P<total>\d+))?$")


def split_in_path(path: Path) -> str | None:
    """The split that a path names, e.g. data/train-00000-of-00002.parquet; the last name wins."""
    words = re.split(r"[^a-z]+", path.with_suffix("").as_posix().lower())
    return next((SPLIT_NAMES[word] for word in reversed(words) if word in SPLIT_NAMES), None)


def require_series(files: Sequence[Path], what: str) -> None:
    """Raise MissingFiles if numbered shards have a gap, or are fewer than their names say."""
    series: dict[tuple[Path, str, str], set[int]] = {}
    widths: dict[tuple[Path, str, str], tuple[int, str]] = {}
    for file in files:
        match = NUMBERED.match(file.stem)
        if match:
            key = file.parent, match["before"], match["total"] or ""
            series.setdefault(key, set()).add(int(match["number"]))
            widths[key] = len(match["number"]), file.suffix
    expected: list[Path] = []
    for (folder, before, total), numbers in series.items():
        width, suffix = widths[folder, before, total]
        ending = (f"-of-{total}" if total else "") + suffix
        last = int(total) if total else max(numbers) + 1
        first = 0 if total else min(numbers)
        expected += [folder / f"{before}{n:0{width}}{ending}" for n in range(first, last)]
    require(expected, what)


def relative_files(root: Path, patterns: Iterable[str]) -> list[Path]:
    """Files below a folder that match a pattern, sorted; the file itself if it is one."""
    if root.is_file():
        return [root] if any(root.match(pattern) for pattern in patterns) else []
    return sorted(path for pattern in patterns for path in root.rglob(pattern) if path.is_file())
