"""A gallery as files for other programs, written block by block.

    .parquet   one row a set: id, the user's columns, and `embeddings`, a list of its elements
    .npy       the embeddings (N, K, D) of a uniform gallery, or (elements, D) of a ragged one, with
               NAME.lengths.npy, and ids and columns in NAME.rows.parquet

`divse-search build --embeddings FILE` reads both back, the files beside an .npy included.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from divse.search import durable
from divse.search.segment_writer import NpyStream
from divse.search.snapshot import Snapshot
from divse.search.writing import Progress
from divse.sets import EmbeddingSets, unpad_elements

EMBEDDINGS = "embeddings"
_BLOCK_BYTES = 1 << 25


def export(snapshot: Snapshot, path: Path, progress: Progress | None = None) -> None:
    """Write the gallery to `path`, by its ending; FileExistsError if a file is in the way."""
    writers = {".parquet": _write_parquet, ".npy": _write_npy}
    if path.suffix not in writers:
        raise ValueError(f"{path}: got {path.suffix!r}, expected {' or '.join(writers)}")
    for target in _targets(snapshot, path):
        if target.exists():
            raise FileExistsError(f"{target} exists: choose another name, or remove it")
    writers[path.suffix](snapshot, path, progress)


def _targets(snapshot: Snapshot, path: Path) -> list[Path]:
    if path.suffix == ".parquet":
        return [path]
    lengths = [path.with_suffix(".lengths.npy")] if snapshot.ragged else []
    return [path, *lengths, path.with_suffix(".rows.parquet")]


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.new")


@contextmanager
def _appearing(*targets: Path) -> Iterator[None]:
    """Write `_temporary` files inside; then all take their names, the first one last."""
    for target in targets:
        durable.remove(_temporary(target))
    try:
        yield
        for target in reversed(targets):
            durable.rename(_temporary(target), target)
        durable.sync_folder(targets[0].absolute().parent)
    finally:
        for target in targets:
            durable.remove(_temporary(target))


def _write_parquet(snapshot: Snapshot, path: Path, progress: Progress | None) -> None:
    import pyarrow as pa

    if EMBEDDINGS in snapshot.schema.names:
        raise ValueError(f"the gallery has a column {EMBEDDINGS!r}: Parquet needs that name")
    rows = snapshot.rows
    kind = pa.list_(pa.list_(pa.from_numpy_dtype(snapshot.manifest.dtype), snapshot.dim))
    schema = snapshot.schema.append(pa.field(EMBEDDINGS, kind))

    def tables() -> Iterator[Any]:
        for start, block in snapshot.blocks(_BLOCK_BYTES):
            table = rows.slice(start, len(block))
            yield table.append_column(EMBEDDINGS, _lists(block)).cast(schema)
            if progress is not None:
                progress(len(block))

    with _appearing(path):
        _write_tables(_temporary(path), schema, tables())


def _write_tables(path: Path, schema: Any, tables: Iterable[Any]) -> None:
    import pyarrow.parquet as pq

    file = durable.open_new(path)
    try:
        with pq.ParquetWriter(file, schema) as writer:
            for table in tables:
                writer.write_table(table)
    except BaseException:
        durable.abandon(file)
        raise
    durable.close_durably(file)


def _lists(block: EmbeddingSets) -> Any:
    """Sets (n, K, D) as an Arrow array of lists of elements."""
    import pyarrow as pa

    elements, lengths = unpad_elements(block)
    inner = pa.FixedSizeListArray.from_arrays(pa.array(elements.reshape(-1)), elements.shape[1])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), inner)


def _write_npy(snapshot: Snapshot, path: Path, progress: Progress | None) -> None:
    inner = () if snapshot.ragged else (snapshot.k,)
    targets = _targets(snapshot, path)
    with _appearing(*targets):
        stream = NpyStream(_temporary(path), (*inner, snapshot.dim), snapshot.manifest.dtype)
        try:
            for _, block in snapshot.blocks(_BLOCK_BYTES):
                ragged = snapshot.ragged
                stream.append(unpad_elements(block)[0] if ragged else np.asarray(block.values))
                if progress is not None:
                    progress(len(block))
        except BaseException:
            stream.abandon()
            raise
        stream.close()
        if snapshot.ragged:
            sizes = NpyStream(_temporary(targets[1]), (), "int64")
            sizes.append(snapshot.set_sizes())
            sizes.close()
        _write_tables(_temporary(targets[-1]), snapshot.schema, [snapshot.rows])
