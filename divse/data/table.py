"""Read a table of captions, JSONL, CSV, TSV or Parquet, as rows that know where they stood."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

NAMES = ("captions", "metadata", "data")
SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")


class Row(NamedTuple):
    """One row: where it stands ("captions.csv, line 7") and its values by column name."""

    where: str
    values: dict[str, Any]


def find_table(path: str | Path) -> Path:
    """Return the table at `path`: the file itself, or the captions file in that folder."""
    path = Path(path)
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise ValueError(
                f"captions are read from {', '.join(SUFFIXES)} files, got {path.name!r}"
            )
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"no file or folder at {path}")
    for name in NAMES:
        for suffix in SUFFIXES:
            if (path / f"{name}{suffix}").is_file():
                return path / f"{name}{suffix}"
    tables = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
    if len(tables) == 1:
        return tables[0]
    found = ", ".join(p.name for p in tables) or "no such file"
    raise FileNotFoundError(
        f"{path} must hold one table of captions, e.g. captions.jsonl or captions.csv; "
        f"it holds {found}: give the path of the file itself"
    )


def read_rows(table: Path) -> Iterator[Row]:
    """Read every row of a table, by its suffix."""
    match table.suffix.lower():
        case ".jsonl":
            return _decoded(table, _jsonl(table))
        case ".csv":
            return _decoded(table, _csv(table, ","))
        case ".tsv":
            return _decoded(table, _csv(table, "\t"))
    return _parquet(table)


def _decoded(table: Path, rows: Iterator[Row]) -> Iterator[Row]:
    try:
        yield from rows
    except UnicodeDecodeError as error:
        raise ValueError(f"{table.name} is not UTF-8 ({error}): convert it") from None


def _jsonl(table: Path) -> Iterator[Row]:
    with table.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{table.name}, line {number}"
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{where}: not JSON ({error})") from None
            if not isinstance(values, dict):
                raise ValueError(f"{where}: expected a JSON object, got {type(values).__name__}")
            yield Row(where, values)


def _csv(table: Path, delimiter: str) -> Iterator[Row]:
    with table.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, delimiter=delimiter, restkey="", strict=True)
        try:
            for values in reader:
                where = f"{table.name}, line {reader.line_num}"
                if "" in values:
                    raise ValueError(
                        f"{where}: more cells than the header has columns; quote a caption that "
                        f"contains {delimiter!r}"
                    )
                yield Row(where, values)
        except csv.Error as error:
            raise ValueError(
                f"{table.name}, after line {reader.line_num}: {error}; is a quote left open?"
            ) from None


def _parquet(table: Path) -> Iterator[Row]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise ImportError(f"reading {table.name} needs pyarrow: pip install pyarrow") from None
    number = 0
    for batch in parquet.ParquetFile(table).iter_batches():
        for values in batch.to_pylist():
            number += 1
            yield Row(f"{table.name}, row {number}", values)
