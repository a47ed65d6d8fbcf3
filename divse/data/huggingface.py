"""huggingface: data sets as the `datasets` library keeps them, read with pyarrow alone.

`path` is a folder that save_to_disk wrote (of a Dataset or a DatasetDict), or one that holds
Parquet or Arrow shards, as downloaded from the Hub. Pictures are the bytes inside, or files that
they name; captions are a column by one of the usual names (divse.data.captions.COLUMNS), or given.
Rows belong to the split of their split column; without one, to that of their file's name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from divse.data.captions import find_columns, flatten, split_of
from divse.data.dataset import ImageTextData, check_split
from divse.data.files import data_root, names_in, read_json, require
from divse.data.pictures import Picture, decode_picture, read_picture
from divse.data.shards import relative_files, require_series, split_in_path
from divse.data.table import Row

PATTERNS = ("*.arrow", "*.parquet")
ROW_GROUPS = 64  # of Parquet, kept in memory: `datasets` writes pictures 100 to a group


def load(
    split: str,
    *,
    path: str | Path | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    split_column: str | None = None,
    id_column: str | None = None,
) -> ImageTextData:
    """Load a split of the folder or file `path`; *_column name columns of unusual names."""
    check_split(split)
    root = data_root(path, "Hugging Face data sets")
    shards = find_shards(root)
    given = {
        "image": image_column or shards[0].picture_column,
        "captions": caption_column,
        "split": split_column,
        "id": id_column,
    }
    columns = find_columns(Row(str(shards[0].path), dict.fromkeys(shards[0].names)), given)
    rows = [row for shard in shards for row in _rows(shard, columns, root) if row.split == split]
    if not rows:
        names = ", ".join(str(shard.path.relative_to(root.parent)) for shard in shards[:5])
        raise ValueError(
            f"{root} has no rows of split {split!r} in {names}: name its files or folders train, "
            "validation and test, or give them a column split"
        )
    rows = merge(rows)
    image = columns["image"][0]
    return ImageTextData.gather(
        root.resolve().stem,
        split,
        [row.name for row in rows],
        [row.captions for row in rows],
        read_image=lambda i: read_cell(rows[i].shard.cell(image, rows[i].number), root),
    )


def recognise(path: Path) -> bool:
    """Whether there are Arrow shards, or Parquet shards with pictures inside, at a path."""
    if path.is_dir() and {"dataset_dict.json", "state.json"} & names_in(path):
        return True
    files = relative_files(path, PATTERNS)
    if not files or files[0].suffix == ".arrow":
        return bool(files)
    try:
        return bool(Shard(files[0]).picture_column)
    except ValueError:
        return True  # loading says which file is broken


@dataclass(frozen=True)
class Shard:
    """One Arrow or Parquet file; only the cells that are asked for are read."""

    path: Path

    @cached_property
    def names(self) -> list[str]:
        """Names of the columns."""
        return [str(name) for name in self._schema.names]

    @cached_property
    def picture_column(self) -> str | None:
        """The column that holds pictures as {bytes, path}; None if none does."""
        from pyarrow import types

        for column in self._schema:
            if types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
                return str(column.name)
        return None

    def columns(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Rows of some columns."""
        if self.path.suffix == ".arrow":
            table = self._arrow.select(list(names))
        else:
            table = self._parquet.read(columns=list(names))
        rows: list[dict[str, Any]] = table.to_pylist()
        return rows

    def cell(self, column: str, row: int) -> Any:
        """One cell."""
        if self.path.suffix == ".arrow":
            return self._arrow[column][row].as_py()
        group = int(np.searchsorted(self._groups, row, side="right")) - 1
        return _row_group(self.path, group, column)[row - self._groups[group]].as_py()

    @property
    def _schema(self) -> Any:
        return self._arrow.schema if self.path.suffix == ".arrow" else self._parquet.schema_arrow

    @property
    def _parquet(self) -> Any:
        from pyarrow import ArrowInvalid, parquet

        try:
            return parquet.ParquetFile(self.path)
        except ArrowInvalid as error:
            raise ValueError(f"{self.path} cannot be read ({error}): is it whole?") from None

    @cached_property
    def _arrow(self) -> Any:
        import pyarrow

        source = pyarrow.memory_map(str(self.path))
        try:
            return pyarrow.ipc.open_stream(source).read_all()
        except pyarrow.ArrowInvalid:
            pass
        try:  # the other of Arrow's two formats, which other programs write
            return pyarrow.ipc.open_file(source).read_all()
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{self.path} cannot be read ({error}): is it whole?") from None

    @cached_property
    def _groups(self) -> list[int]:
        file = self._parquet.metadata
        counts = [file.row_group(i).num_rows for i in range(file.num_row_groups)]
        return [0, *np.cumsum(counts).tolist()][:-1]


@lru_cache(maxsize=ROW_GROUPS)
def _row_group(path: Path, group: int, column: str) -> Any:
    from pyarrow import parquet

    return parquet.ParquetFile(path).read_row_group(group, columns=[column])[column]


@dataclass
class Source:
    """A picture: its row in a shard, its split and captions."""

    shard: Shard
    number: int
    name: str
    split: str
    captions: list[str] = field(default_factory=list)


def find_shards(root: Path) -> list[Shard]:
    """Shards below a folder, all there that its own records or their names promise."""
    folders = [root]
    if (root / "dataset_dict.json").is_file():
        folders = [root / name for name in read_json(root / "dataset_dict.json")["splits"]]
        require([folder / "state.json" for folder in folders], f"files of {root.name}")
    promised: list[Path] = []
    for folder in folders:
        if (folder / "state.json").is_file():
            names = [f["filename"] for f in read_json(folder / "state.json")["_data_files"]]
            promised += [folder / name for name in names]
    if promised:
        require(promised, f"shards of {root.name}")
        return [Shard(file) for file in promised]
    files = relative_files(root, PATTERNS)
    if not files:
        raise FileNotFoundError(f"no .arrow or .parquet files in {root}")
    require_series(files, f"shards of {root.name}")
    return [Shard(file) for file in files]


def _rows(shard: Shard, columns: dict[str, list[str]], root: Path) -> Iterator[Source]:
    """Rows of a shard: their splits and captions, without the pictures."""
    wanted = [*columns["captions"], *columns["split"], *columns["id"]]
    place = shard.path.relative_to(root.parent)
    of_file, series = split_in_path(place), "/".join(place.with_suffix("").parts[1:])
    for number, values in enumerate(shard.columns(wanted)):
        where = f"{shard.path}, row {number + 1}"
        captions = list(flatten(where, [values[name] for name in columns["captions"]]))
        if not captions:
            raise ValueError(f"{where}: no caption in {', '.join(columns['captions'])}")
        name = (
            str(values[columns["id"][0]])
            if columns["id"]
            else f"{series or shard.path.stem}/{number}"
        )
        cells = [values[column] for column in columns["split"]] or ([of_file] if of_file else [])
        yield Source(shard, number, name, split_of(where, name, cells), captions)


def merge(rows: Sequence[Source]) -> list[Source]:
    """Put rows of the same id together: one picture, all its captions."""
    merged: dict[str, Source] = {}
    for row in rows:
        known = merged.setdefault(row.name, row)
        if known is not row:
            known.captions += row.captions
    return list(merged.values())


def read_cell(cell: Any, root: Path) -> Picture:
    """Read a picture from a cell: {bytes, path}, bytes, or a path."""
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if isinstance(content, bytes):
        return decode_picture(content, str(root))
    path = cell.get("path") if isinstance(cell, dict) else cell
    if not isinstance(path, str):
        raise ValueError(f"{root}: a picture must be bytes or a path, got {cell!r:.80}")
    return read_picture(root / path)
