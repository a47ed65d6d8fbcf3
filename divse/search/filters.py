"""Filters: which sets of a gallery a search may return.

`where` is a condition over the gallery's columns and `id`, such as "year >= 2010 and label in
('cat', 'dog')"; `allowed` is an array of ids. What is left is handed to the kernels and to FAISS as
bitmaps, so a search never finds fewer sets than there are.

DuckDB evaluates conditions. It sees a table of the columns that the condition names and nothing
else: a condition is one expression, without subqueries, and the connection reaches no files, no
Python variables and no extensions. Its memory and threads are bounded, and so is the time that a
search waits for it. It looks at its bounds between blocks of rows only: one row may take more
memory, and what took too long may go on for a while in a thread that nobody waits for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import suppress
from threading import Thread
from typing import Any

import numpy as np

from divse.search.rows import ID
from divse.search.segment import Segment
from divse.search.snapshot import Snapshot

TABLE = "gallery"
SECONDS = 60.0  # a condition may take,
GRACE = 0.5  # and so long DuckDB has to hear that it shall stop
_POSITION = "position of the set"
_SAFE = {
    "enable_external_access": "false",
    "autoload_known_extensions": "false",
    "autoinstall_known_extensions": "false",
    "python_enable_replacements": "false",
    "memory_limit": "2GiB",
    "threads": "4",
}
_REFUSED = {
    "SUBQUERY": "subqueries",
    "STAR": "stars",
    "WINDOW": "window functions",
    "PARAMETER": "parameters",
}
_ACTIONS = {"nextval", "pg_sleep", "setseed", "setval", "sleep_ms", "write_log"}


class Selection:
    """The sets of a snapshot that a filter leaves: `mask` (N,) bool by position, `count` of them.

    Bitmaps have bit n & 7 of byte n >> 3 set for set n.
    """

    def __init__(self, snapshot: Snapshot, mask: np.ndarray) -> None:
        self.snapshot, self.mask = snapshot, mask
        self.positions = np.flatnonzero(mask)
        self._bitmaps: dict[tuple[str, str], np.ndarray] = {}  # of what, of which segment

    @property
    def count(self) -> int:
        """Sets that are left."""
        return len(self.positions)

    def inside(self, segment: Segment) -> np.ndarray:
        """Which of a segment's sets are left: ascending, numbered without the removed ones."""
        first, last = np.searchsorted(self.positions, [segment.start, segment.start + segment.sets])
        return np.asarray(self.positions[first:last] - segment.start)

    def excluded(self, segment: Segment) -> np.ndarray:
        """Bitmap (ceil(n / 8),) over the sets of a segment's files of those not to be found."""
        key = ("sets", segment.entry.name)
        if key not in self._bitmaps:
            mask = np.ones(segment.entry.sets, dtype=bool)
            mask[segment.own(self.inside(segment))] = False
            self._bitmaps[key] = np.packbits(mask, bitorder="little")
        return self._bitmaps[key]

    def elements(self, segment: Segment) -> np.ndarray:
        """Bitmap over the elements of a segment's files of those that may be found."""
        key = ("elements", segment.entry.name)
        if key not in self._bitmaps:
            mask = np.zeros(segment.entry.elements, dtype=bool)
            mask[segment.element_index(self.inside(segment))] = True
            self._bitmaps[key] = np.packbits(mask, bitorder="little")
        return self._bitmaps[key]


def select(
    snapshot: Snapshot, where: str | None = None, allowed: Iterable[Any] | None = None
) -> Selection | None:
    """Return what both filters leave, or None without any.

    Raises ValueError for a condition that is none, naming unknown columns and the known ones, and
    KeyError for ids that are not in the gallery.
    """
    if where is None and allowed is None:
        return None
    mask = np.ones(len(snapshot), dtype=bool)
    if where is not None:
        mask &= matching(snapshot, where)
    if allowed is not None:
        mask &= snapshot.with_ids(allowed)
    return Selection(snapshot, mask)


def matching(snapshot: Snapshot, where: str) -> np.ndarray:
    """Return the mask (N,) of the sets for which a condition is true; NULL is not true."""
    if not isinstance(where, str):
        raise TypeError(f"where: got {type(where).__name__}, expected a condition such as 'id = 7'")
    if not where.strip():
        raise ValueError("where: got nothing, expected a condition such as 'id = 7'")
    try:
        return _evaluated(snapshot, where)
    except RecursionError:
        raise ValueError(
            f"where={where!r:.80}... is nested too deep: write 'x in (...)' for many 'or', "
            "or give allowed= ids"
        ) from None


def _evaluated(snapshot: Snapshot, where: str) -> np.ndarray:
    duckdb = import_duckdb()
    mask = np.zeros(len(snapshot), dtype=bool)
    connection = duckdb.connect(":memory:", config=_SAFE)
    try:
        mask[_in_time(connection, lambda: _positions(connection, snapshot, where))] = True
    except (TimeoutError, duckdb.InterruptException):
        raise TimeoutError(
            f"where={where!r:.200} took longer than {SECONDS:g} s: write a simpler condition, "
            "or give allowed= ids"
        ) from None
    except duckdb.Error as error:
        raise ValueError(f"where={where!r:.200}: {_reason(error)}") from None
    return mask


def _positions(connection: Any, snapshot: Snapshot, where: str) -> np.ndarray:
    """The positions of the sets for which a condition is true; closes the connection."""
    with connection:
        connection.execute("SET lock_configuration = true").fetchall()
        columns = _columns_of(_condition(connection, where), snapshot.schema.names)
        connection.register(TABLE, _table(snapshot, columns))
        rows = connection.execute(_query(where)).fetchnumpy()
        return np.asarray(rows[_POSITION], dtype=np.int64)


def _in_time(connection: Any, work: Callable[[], np.ndarray]) -> np.ndarray:
    """Return what `work` returns in a thread of its own, or raise TimeoutError after `SECONDS`.

    An interrupt, which Ctrl-C brings too, is heard between blocks of rows, however late that is.
    """
    outcome: Future[np.ndarray] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    Thread(target=run, daemon=True).start()  # the end of the program does not wait for it either
    try:
        wait([outcome], SECONDS)
    finally:
        if not outcome.done():
            with suppress(Exception):  # it may just have been closed
                connection.interrupt()
            wait([outcome], GRACE)
    return outcome.result(0)


def _table(snapshot: Snapshot, columns: list[str]) -> Any:
    """The columns as an Arrow table, with the sets' positions; mapped, not copied, where it can."""
    import pyarrow as pa

    parts = [segment.live_rows(columns or [ID]) for segment in snapshot.segments]
    table = pa.concat_tables(parts)
    kinds = [pa.field(column.name, _known_type(column.type)) for column in table.schema]
    table = table.cast(pa.schema(kinds))
    return table.append_column(_POSITION, pa.array(np.arange(len(snapshot))))


def _known_type(kind: Any) -> Any:
    """The type with float32 in place of float16, which DuckDB does not know, in lists too."""
    import pyarrow as pa

    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_known_type(kind.value_type), kind.list_size)
    if pa.types.is_list(kind):
        return pa.list_(_known_type(kind.value_type))
    return kind


def import_duckdb() -> Any:
    """Import duckdb; ImportError says what to do without it."""
    try:
        import duckdb
    except ImportError as error:
        raise ImportError(
            f"where= needs duckdb ({error}): pip install 'divse[filters]', or give allowed= ids"
        ) from None
    return duckdb


def _query(where: str) -> str:
    # on lines of its own, so that a comment does not hide the bracket
    return f'SELECT "{_POSITION}" FROM {TABLE} WHERE (\n{where}\n)'


def _condition(connection: Any, where: str) -> list[dict[str, Any]]:
    """The syntax nodes of a condition, which must be all that differs from the plainest query."""
    asked, plain = (_tree(connection, text) for text in (where, "true"))
    if "error_message" in asked:
        raise ValueError(f"where={where!r:.200} is no condition: {asked['error_message']}")
    nodes = [_single_node(tree) for tree in (asked, plain)]
    condition, _ = (node.pop("where_clause", None) for node in nodes)
    if condition is None or nodes[0] != nodes[1]:
        raise ValueError(f"where={where!r:.200} is no condition: it must be one expression")
    inside = list(_nodes(condition))
    for node in inside:
        if node.get("class") in _REFUSED:
            raise ValueError(f"where={where!r:.200}: {_REFUSED[node['class']]} are not allowed")
        if node.get("class") == "FUNCTION" and node["function_name"].lower() in _ACTIONS:
            raise ValueError(f"where={where!r:.200}: {node['function_name']} is not allowed")
    return inside


def _tree(connection: Any, where: str) -> dict[str, Any]:
    rows = connection.execute("SELECT json_serialize_sql(?)", [_query(where)]).fetchall()
    tree: dict[str, Any] = json.loads(rows[0][0])
    return tree


def _single_node(tree: dict[str, Any]) -> dict[str, Any]:
    statements = tree["statements"]
    node: dict[str, Any] = statements[0]["node"] if len(statements) == 1 else {}
    return node


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every object of a syntax tree."""
    if isinstance(tree, dict):
        yield tree
    if isinstance(tree, dict | list):
        for child in tree.values() if isinstance(tree, dict) else tree:
            yield from _nodes(child)


def _columns_of(condition: list[dict[str, Any]], known: list[str]) -> list[str]:
    """The gallery's columns that a condition names, in any case, as SQL does."""
    # An arrow is a lambda or JSON's, so what stands left of it may be a parameter or a column.
    bound = {
        name.lower()
        for node in condition
        if node.get("class") == "LAMBDA"
        for part in _nodes(node["lhs"])
        for name in part.get("column_names", ())
    } - {name.lower() for name in known}
    found: dict[str, str] = {}
    for node in condition:
        if node.get("class") != "COLUMN_REF" or node["column_names"][0].lower() in bound:
            continue
        name = _column(node["column_names"], known)
        if found.setdefault(name.lower(), name) != name:
            raise ValueError(f"where: columns {found[name.lower()]} and {name} differ only by case")
    return list(found.values())


def _column(names: list[str], known: list[str]) -> str:
    """The column that a reference such as year, gallery.year or record.field names."""
    if len(names) > 1 and names[0].lower() == TABLE and TABLE not in map(str.lower, known):
        names = names[1:]
    if names[0] in known:
        return names[0]
    for column in known:
        if column.lower() == names[0].lower():
            return column
    others = ", ".join(name for name in known if name != ID) or "none"
    raise ValueError(
        f"where: unknown column {names[0]!r}; known are {ID} and the gallery's columns: {others} "
        "(texts stand in single quotes)"
    )


def _reason(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
