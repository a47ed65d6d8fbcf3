"""A gallery as files for other programs, written block by block.

    .parquet   one row a set: id, the user's columns, and `embeddings`, a list of its elements
    .npy       the embeddings (N, K, D) of a uniform gallery, or (elements, D) of a ragged one, with
               NAME.lengths.npy, and ids and columns in NAME.rows.parquet

Both can be read back by `divse-search build` and by `Gallery.create`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from divse.search.segment_writer import NpyStream
from divse.search.snapshot import Snapshot
from divse.search.writing import Progress
from divse.sets import EmbeddingSets

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


def _write_parquet(snapshot: Snapshot, path: Path, progress: Progress | None) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if EMBEDDINGS in snapshot.schema.names:
        raise ValueError(f"the gallery has a column {EMBEDDINGS!r}: Parquet needs that name")
    rows = snapshot.rows
    kind = pa.list_(pa.list_(pa.from_numpy_dtype(snapshot.manifest.dtype), snapshot.dim))
    schema = snapshot.schema.append(pa.field(EMBEDDINGS, kind))
    try:
        with pq.ParquetWriter(_temporary(path), schema) as file:
            for start, block in snapshot.blocks(_BLOCK_BYTES):
                table = rows.slice(start, len(block))
                file.write_table(table.append_column(EMBEDDINGS, _lists(block)).cast(schema))
                if progress is not None:
                    progress(len(block))
        os.replace(_temporary(path), path)
    finally:
        _temporary(path).unlink(missing_ok=True)


def _lists(block: EmbeddingSets) -> Any:
    """Sets (n, K, D) as an Arrow array of lists of elements."""
    import pyarrow as pa

    elements = _elements(block)
    inner = pa.FixedSizeListArray.from_arrays(pa.array(elements.reshape(-1)), elements.shape[1])
    offsets = np.concatenate([[0], np.cumsum(_lengths(block))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), inner)


def _write_npy(snapshot: Snapshot, path: Path, progress: Progress | None) -> None:
    import pyarrow.parquet as pq

    inner = () if snapshot.ragged else (snapshot.k,)
    targets = _targets(snapshot, path)
    for target in targets:
        _temporary(target).unlink(missing_ok=True)
    try:
        stream = NpyStream(_temporary(path), (*inner, snapshot.dim), snapshot.manifest.dtype)
        for _, block in snapshot.blocks(_BLOCK_BYTES):
            stream.append(_elements(block) if snapshot.ragged else np.asarray(block.values))
            if progress is not None:
                progress(len(block))
        stream.close()
        if snapshot.ragged:
            with open(_temporary(targets[1]), "wb") as file:
                np.save(file, snapshot.set_sizes(), allow_pickle=False)
        pq.write_table(snapshot.rows, _temporary(targets[-1]))
        for target in reversed(targets):  # the embeddings appear last, when all is there
            os.replace(_temporary(target), target)
    finally:
        for target in targets:
            _temporary(target).unlink(missing_ok=True)


def _lengths(block: EmbeddingSets) -> np.ndarray:
    if block.lengths is None:
        return np.full(len(block), block.k, dtype=np.int64)
    return np.asarray(block.lengths)


def _elements(block: EmbeddingSets) -> np.ndarray:
    """The real elements of sets (n, K, D), one after another: (total, D)."""
    values = np.asarray(block.values)
    return values[np.arange(block.k) < _lengths(block)[:, None]]
