"""Rows of a gallery: one id and the user's columns for each set, stored as an Arrow IPC file.

Ids are strings or int64, unique in the gallery; without any, rows are numbered. Columns are
whatever Arrow can hold; a column's type is fixed by the first rows and later rows must fit it.
pyarrow is imported where it is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np

ID = "id"


class RowStream:
    """Ids and columns, taken block by block beside the stream of sets.

    Each source may be a sized sequence (list, numpy or Arrow array: its type is inferred from all
    of it) or an iterator (its type is inferred from the first block).
    """

    def __init__(
        self,
        ids: Iterable[Any] | None,
        columns: Mapping[str, Iterable[Any]] | None,
        *,
        first_id: int = 0,
        schema: Any = None,
    ) -> None:
        columns = dict(columns or {})
        if ID in columns:
            raise ValueError(f"a column may not be called {ID!r}: pass these values as ids=")
        if schema is not None and set(schema.names) - {ID} != set(columns):
            raise ValueError(
                f"the gallery has columns {sorted(set(schema.names) - {ID})}, "
                f"these rows have {sorted(columns)}: give each of them a value, by columns= or "
                "--columns FILE, and no others"
            )
        fixed = schema or ()
        self._types: dict[str, Any] = {column.name: column.type for column in fixed}
        self._next_id = first_id
        self._numbered = ids is None
        sources = columns if ids is None else {ID: ids, **columns}
        self._sources = {name: _Source(name, values) for name, values in sources.items()}

    @property
    def types(self) -> dict[str, str]:
        """Arrow type of each column by name, known after the first block."""
        return {name: str(kind) for name, kind in self._types.items()}

    def take(self, count: int) -> Any:
        """Return the next `count` rows as an Arrow RecordBatch."""
        import pyarrow as pa

        arrays = {}
        if self._numbered:
            if self._next_id + count > 2**63:
                raise ValueError("there are no greater integer ids than the gallery's: give ids")
            arrays[ID] = pa.array(np.arange(self._next_id, self._next_id + count))
            self._next_id += count
        for name, source in self._sources.items():
            arrays[name] = source.take(count, self._types.get(name))
        arrays[ID] = _checked_ids(arrays[ID])
        for name, array in arrays.items():
            expected = self._types.setdefault(name, array.type)
            if array.type != expected:
                what = "ids" if name == ID else f"values of column {name!r}"
                raise TypeError(f"the gallery's {what} are {expected}; these are {array.type}")
        return pa.record_batch([arrays[name] for name in self._types], names=list(self._types))

    def finish(self) -> None:
        """Refuse rows that no set came for."""
        for name, source in self._sources.items():
            if not source.is_spent():
                what = "ids" if name == ID else f"values of column {name!r}"
                raise ValueError(f"more {what} than sets: give one for each set")


class _Source:
    """The values of one column, whole or as they come."""

    def __init__(self, name: str, values: Iterable[Any]) -> None:
        self.name = name
        self._array: Any = None
        self._start = 0
        self._iterator: Iterator[Any] = iter(())
        if isinstance(values, str | bytes):
            raise TypeError(f"{name!r} must be a sequence with one value for each set, not a str")
        if hasattr(values, "__len__"):
            self._array = _to_arrow(name, values, None)
        else:
            self._iterator = iter(values)

    def take(self, count: int, kind: Any) -> Any:
        if self._array is not None:
            taken = self._array.slice(self._start, count)
            self._start += len(taken)
            if kind is not None and taken.type != kind:
                taken = _cast(self.name, taken, kind)
        else:
            taken = _to_arrow(self.name, list(islice(self._iterator, count)), kind)
        if len(taken) < count:
            raise ValueError(f"fewer values of {self.name!r} than sets: give one for each set")
        return taken

    def is_spent(self) -> bool:
        if self._array is not None:
            return bool(self._start == len(self._array))
        return next(self._iterator, self) is self


def as_ids(ids: Any, kind: Any = None) -> Any:
    """Return ids, one value or many, as an Arrow array of the gallery's type, if it is known."""
    import pyarrow as pa

    if isinstance(ids, str | int | np.integer):
        ids = [ids]
    array = ids if isinstance(ids, pa.Array) else None
    if array is None:
        values = ids if hasattr(ids, "__len__") else list(ids)
        array = _to_arrow(ID, values, None) if len(values) else pa.array([], type=kind)
    array = _checked_ids(array)
    if kind is not None and array.type != kind:
        raise TypeError(f"the gallery's ids are {kind}; these are {array.type}")
    return array


def first_duplicate(column: Any) -> Any:
    """Return a value that occurs twice in an Arrow column, or None."""
    import pyarrow.compute as pc

    if len(pc.unique(column)) == len(column):
        return None
    counts = pc.value_counts(column)
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    return repeated.field("values")[0].as_py()


def _to_arrow(name: str, values: Any, kind: Any) -> Any:
    """Convert values to one contiguous Arrow array."""
    import pyarrow as pa

    if isinstance(values, pa.ChunkedArray):
        array = _plain(pa.chunked_array(values).combine_chunks())
        return array if kind is None else _cast(name, array, kind)
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    if isinstance(values, np.ndarray) and values.ndim > 1:
        values = list(values)
    try:
        return _plain(pa.array(values, type=kind))
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, TypeError) as error:
        raise TypeError(f"values of {name!r} do not have one type: {error}") from None


def _plain(array: Any) -> Any:
    """Decode dictionaries, runs and views: in files, and joined to others, they have limits."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_run_end_encoded(array.type):
        array = pc.run_end_decode(array)
    views = {"string_view": pa.string(), "binary_view": pa.binary()}
    plain = views.get(str(array.type))
    return array if plain is None else array.cast(plain)


def _cast(name: str, array: Any, kind: Any) -> Any:
    import pyarrow as pa

    both = {pa.types.is_integer(array.type), pa.types.is_integer(kind)}
    if name == ID and both == {True, False}:  # 7 and "7" are two ids; never turn one to the other
        raise TypeError(f"the gallery's ids are {kind}; these are {array.type}")
    try:
        return array.cast(kind)
    except pa.ArrowException as error:
        raise TypeError(f"values of {name!r} are not {kind}: {error}") from None


def _checked_ids(array: Any) -> Any:
    """Ids as int64 or string, none of them missing."""
    import pyarrow as pa

    if array.null_count:
        raise ValueError(f"{array.null_count} ids are missing (null): each set needs one")
    if pa.types.is_integer(array.type):
        return _cast(ID, array, pa.int64())
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        return array.cast(pa.string())
    raise TypeError(f"ids must be strings or integers, not {array.type}")
