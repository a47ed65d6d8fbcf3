"""captions: anybody's pictures with a JSONL, CSV, TSV or Parquet file of captions.

A row names a picture, relative to the file, and its captions: a list, one caption (rows of the
same picture are put together), or columns caption_1, caption_2, ... Column names are found by
their usual names (COLUMNS) or given. Rows are split by their split column; a file without one is
split 80 : 10 : 10 by a hash of the picture's id, the same on every machine.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from divse.data.dataset import ImageTextData, check_split
from divse.data.files import require
from divse.data.table import Row, find_table, read_rows

COLUMNS = {
    "image": ("image", "image_path", "file_name", "filename", "picture", "path", "file"),
    "captions": ("captions", "caption", "text", "texts", "sentences", "sentence"),
    "split": ("split", "subset", "partition"),
    "id": ("id", "image_id", "picture_id"),
}
NUMBERED = re.compile(r"(caption|text|sentence)[_ ]?\d+", re.IGNORECASE)
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "restval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


@dataclass
class _Entry:
    """One picture, put together from its rows."""

    where: str
    path: Path
    split: str
    captions: list[str] = field(default_factory=list)


def load(
    split: str,
    *,
    path: str | Path | None = None,
    images: str | Path | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    split_column: str | None = None,
    id_column: str | None = None,
) -> ImageTextData:
    """Load a split of the captions file at `path`, or in the folder `path`.

    images: folder that picture paths are relative to; default: the folder of the file
    *_column: names of columns that are not among the usual ones
    """
    check_split(split)
    if path is None:
        raise ValueError("captions need the path of a captions file or of its folder, got none")
    table = find_table(path)
    given = {
        "image": image_column,
        "captions": caption_column,
        "split": split_column,
        "id": id_column,
    }
    entries = _entries(table, Path(images or table.parent), given)
    chosen = {name: entry for name, entry in entries.items() if entry.split == split}
    if not chosen:
        sizes = Counter(entry.split for entry in entries.values())
        has = ", ".join(f"{name}: {count}" for name, count in sizes.items()) or "no rows"
        raise ValueError(
            f"{table} has no pictures in split {split!r} (it has {has}): add rows, or a column "
            "split that says train, val or test"
        )
    paths = [entry.path for entry in chosen.values()]
    places = [entry.where for entry in chosen.values()]
    require(paths, f"pictures of {table.name}", notes=places)
    captions = [entry.captions for entry in chosen.values()]
    return ImageTextData.gather(table.stem, split, list(chosen), captions, image_paths=paths)


def recognise(path: Path) -> bool:
    """Whether there is a table with columns of pictures and captions at a path."""
    try:
        row = next(iter(read_rows(find_table(path))))
        find_columns(row, dict.fromkeys(COLUMNS))
    except (FileNotFoundError, ValueError, StopIteration):
        return False
    return True


def _entries(table: Path, root: Path, given: dict[str, str | None]) -> dict[str, _Entry]:
    """Put the rows of every split together by picture, in order of appearance."""
    entries: dict[str, _Entry] = {}
    columns: dict[str, list[str]] | None = None
    for row in read_rows(table):
        if columns is None:
            columns = find_columns(row, given)
            _notice_split(table, columns)
        name, entry = _read(row, columns, root)
        known = entries.setdefault(name, entry)
        if (known.path, known.split) != (entry.path, entry.split):
            raise ValueError(
                f"{entry.where}: picture {name!r} is {entry.path} in split {entry.split}, but "
                f"{known.where} says {known.path} in split {known.split}"
            )
        known.captions += entry.captions if known is not entry else []
    return entries


def find_columns(row: Row, given: dict[str, str | None]) -> dict[str, list[str]]:
    """Choose the columns by the first row: role -> names (several for numbered captions)."""
    lower = {name.lower(): name for name in row.values}
    columns: dict[str, list[str]] = {}
    for role, usual in COLUMNS.items():
        wanted = given[role]
        if wanted is not None and wanted not in row.values:
            raise ValueError(
                f"{row.where}: no column {wanted!r}, the columns are {', '.join(row.values)}"
            )
        found = [wanted] if wanted else [lower[name] for name in usual if name in lower][:1]
        if role == "captions" and not found:
            found = [name for name in row.values if NUMBERED.fullmatch(name)]
        columns[role] = found
    for role in ("image", "captions"):
        if not columns[role]:
            raise ValueError(
                f"{row.where}: no column of {role} (looked for {', '.join(COLUMNS[role])}); the "
                f"columns are {', '.join(row.values)}: give its name"
            )
    return columns


def _notice_split(table: Path, columns: dict[str, list[str]]) -> None:
    if not columns["split"]:
        warnings.warn(
            f"{table.name} has no split column (looked for {', '.join(COLUMNS['split'])}): "
            "pictures are split 80 : 10 : 10 by a hash of their id",
            stacklevel=4,
        )


def _read(row: Row, columns: dict[str, list[str]], root: Path) -> tuple[str, _Entry]:
    """Read one row: the picture's id, and an entry with the captions of this row."""
    where, values = row
    image = values.get(columns["image"][0])
    if not isinstance(image, str) or not image.strip():
        raise ValueError(
            f"{where}: {columns['image'][0]!r} must be the path of a picture, got {image!r:.80}"
        )
    captions = list(flatten(where, [values.get(name) for name in columns["captions"]]))
    if not captions:
        raise ValueError(f"{where}: no caption in {', '.join(map(repr, columns['captions']))}")
    name = str(values.get(columns["id"][0], image)) if columns["id"] else image
    split = split_of(where, name, [values.get(column) for column in columns["split"]])
    return name, _Entry(where, root / image.strip(), split, captions)


def flatten(where: str, cells: Iterable[Any]) -> Iterable[str]:
    """Flatten cells (a caption, a list, or a list written as JSON); blank ones are left out."""
    for cell in cells:
        for caption in _listed(where, cell):
            if isinstance(caption, dict):  # sentences of the Karpathy JSON
                caption = caption.get("raw")
            if caption is not None and not isinstance(caption, str):
                raise ValueError(
                    f"{where}: a caption must be text, got {type(caption).__name__} {caption!r:.80}"
                )
            if caption and caption.strip():
                yield caption.strip()


def _listed(where: str, cell: Any) -> list[Any]:
    """List what a cell holds; CSV files may write a list of captions as JSON."""
    if isinstance(cell, list):
        return cell
    if not isinstance(cell, str) or not cell.lstrip().startswith('["'):
        return [cell]
    try:
        listed: list[Any] = json.loads(cell)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: a list of captions that is not JSON ({error})") from None
    return listed


def split_of(where: str, name: str, cells: Sequence[Any]) -> str:
    """Read the split of a picture; without a cell, draw it by a hash of its name."""
    if not cells:
        draw = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 10
        return {0: "val", 1: "test"}.get(draw, "train")
    value = str(cells[0]).strip().lower()
    if value not in SPLIT_NAMES:
        raise ValueError(
            f"{where}: split must be one of {', '.join(SPLIT_NAMES)}, got {cells[0]!r}"
        )
    return SPLIT_NAMES[value]
