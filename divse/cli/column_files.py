"""Columns from a table beside the embeddings: a .csv, .tsv or .parquet file, one row a set.

Rows are matched by the column "id"; where neither sets nor rows have ids, by their order. CSV has
no types: whole numbers, numbers, dates, times, true and false are recognised where a whole column
is made of them, everything else is text. A gallery that is there knows better.
"""

from __future__ import annotations

import csv
from contextlib import suppress
from pathlib import Path
from typing import Any

from divse.search.rows import ID, as_ids, first_duplicate

SEPARATORS = {".csv": ",", ".tsv": "\t"}
SPOKEN = {",": "commas", "\t": "tabs", ";": "semicolons"}
HEADER = 1 << 16  # characters of a first line that are looked at
TABLES = (*SEPARATORS, ".parquet")
TAKEN = ("rank", "score", "explain")  # what an answer calls its own
NAMED = 5  # ids in an error


def read_columns(path: Path, ids: Any, total: int, schema: Any = None) -> dict[str, Any]:
    """Read the columns of `total` sets, in the order of the sets, each an Arrow ChunkedArray.

    `ids` are those of the sets, None without; `schema` (Arrow) is that of the gallery, if there is
    one: it says what type a column has.
    """
    table = read_table(path, schema)
    _check_names(path, table.column_names)
    if ID in table.column_names:
        table = table.take(_order(path, ids_of(path, table), ids)).drop_columns([ID])
    elif ids is not None:
        raise ValueError(f"{path} has no column id to match the ids of the sets, such as {ids[0]}")
    elif table.num_rows != total:
        raise ValueError(f"{path} has {table.num_rows} rows for {total} sets: give one for each")
    return {name: table.column(name) for name in table.column_names}


def read_table(path: Path, schema: Any = None) -> Any:
    """Read a table file as an Arrow table; the ids of a CSV file are left as text."""
    import pyarrow as pa
    from pyarrow import csv as arrow
    from pyarrow import parquet

    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    if path.suffix not in TABLES:
        raise ValueError(f"{path}: expected a file called {', '.join(f'*{s}' for s in TABLES)}")
    try:
        if path.suffix not in SEPARATORS:
            return parquet.read_table(path)
        _check_separator(path)
        known = {column.name: column.type for column in schema or ()} | {ID: pa.string()}
        table = arrow.read_csv(
            path,
            parse_options=arrow.ParseOptions(
                delimiter=SEPARATORS[path.suffix], newlines_in_values=True
            ),
            convert_options=arrow.ConvertOptions(column_types=known),
        )
        if pa.binary() in table.schema.types:
            raise pa.ArrowInvalid(f"it is no UTF-8 text, in a column of {table.column_names}")
        _ = table.column_names  # raises where these are no UTF-8
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    return table


def _check_separator(path: Path) -> None:
    """Refuse what would be read as one column, as another character separates the names."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        header = lines.readline(HEADER)
    own = SEPARATORS[path.suffix]
    found = [mark for mark in SPOKEN if len(next(csv.reader([header], delimiter=mark), [])) > 1]
    if not found or own in found:
        return
    ending = next((name for name, mark in SEPARATORS.items() if mark == found[0]), None)
    action = f"call it {path.stem}{ending}" if ending else f"save it with {SPOKEN[own]}"
    raise ValueError(
        f"{path}: columns are separated by {SPOKEN[found[0]]}, expected {SPOKEN[own]}: {action} "
        "(a name that holds such a mark stands in double quotes)"
    )


def ids_of(path: Path, table: Any) -> Any:
    """Return the ids of a table as an Arrow array: whole numbers where all of them are, or text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if table.column_names.count(ID) != 1:
        raise ValueError(f"{path}: expected one column called id, found {table.column_names}")
    column = table.column(ID)
    if not len(column):
        raise ValueError(f"{path} has no rows")
    empty = column.null_count
    if path.suffix in SEPARATORS:  # 007 is text: as a number it would be another id
        empty = pc.sum(pc.equal(column, "")).as_py()
        if pc.all(pc.match_substring_regex(column, r"^(0|-?[1-9]\d*)$")).as_py():
            with suppress(pa.ArrowInvalid):  # beyond 64 bits: text
                column = column.cast(pa.int64())
    if empty:
        raise ValueError(f"{path}: {empty} rows have no id")
    return as_ids(column)


def _order(path: Path, rows: Any, ids: Any) -> Any:
    """For each set the row of its id; every set has one row, and every row a set."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if ids is None:
        raise ValueError(
            f"{path} has a column id and the sets have no ids: give --ids {path} too if its rows "
            "are in the order of the sets, or leave the column out"
        )
    sets = as_ids(ids)
    if pa.types.is_string(sets.type) and path.suffix in SEPARATORS:
        rows = rows.cast(pa.string())
    if rows.type != sets.type:
        raise TypeError(f"{path} has ids of type {rows.type}, the ids of the sets are {sets.type}")
    if (twice := first_duplicate(rows)) is not None:
        raise ValueError(f"{path}: id {twice!r} occurs twice; give one row for each set")
    order = pc.index_in(sets, value_set=rows)
    if order.null_count:
        raise ValueError(f"{path} has no row for id {_named(sets.filter(pc.is_null(order)))}")
    unused = rows.filter(pc.invert(pc.is_in(rows, value_set=sets)))
    if len(unused):
        raise ValueError(f"{path} has a row for id {_named(unused)}, which is no set's")
    return order


def _named(ids: Any) -> str:
    names = ", ".join(map(repr, ids[:NAMED].to_pylist()))
    return names if len(ids) <= NAMED else f"{names}, ... ({len(ids):,} in all)"


def _check_names(path: Path, names: list[str]) -> None:
    """Refuse names that no condition and no answer could tell from others."""
    for place, name in enumerate(names):
        if not name:
            raise ValueError(
                f"{path}: column {place + 1} has no name (pandas writes such a one: index=False)"
            )
        if names.count(name) > 1:
            raise ValueError(f"{path}: there are two columns called {name!r}")
        if name.lower() in TAKEN:
            raise ValueError(f"{path}: a column {name!r} would hide that of the answers: rename it")
        if name != ID and name.lower() == ID:
            raise ValueError(f"{path}: a column {name!r} would hide the ids: rename it")
