"""Sets from a list column of a Parquet file, read as a stream."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from divse.sets import EmbeddingSets, pad_elements


def is_list(kind: Any) -> bool:
    """Whether an Arrow type is one of lists."""
    import pyarrow as pa

    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in tests)


def blocks_of_lists(path: Path, name: str) -> Iterator[EmbeddingSets]:
    """Yield the sets of a list column; a first pass tells whether they are all of one size."""
    import pyarrow as pa

    sizes = [np.unique(_sizes(batch, path, name)) for batch in _batches(path, name)]
    ragged = len(np.unique(np.concatenate(sizes))) > 1 if sizes else False
    for batch in _batches(path, name):
        lengths = _sizes(batch, path, name)
        nested = is_list(batch.type.value_type)
        vectors = batch.flatten() if nested else batch
        flat = vectors.flatten()
        if not (pa.types.is_floating(flat.type) or pa.types.is_integer(flat.type)):
            raise TypeError(f"{path}: column {name!r} holds {flat.type}; expected numbers")
        if not len(vectors) or len(np.unique(_list_sizes(vectors))) > 1:
            raise ValueError(f"{path}: vectors of column {name!r} differ in their dimensions")
        elements = flat.to_numpy(zero_copy_only=False)
        if elements.dtype != np.float16:
            elements = elements.astype(np.float32)
        values = pad_elements(elements.reshape(len(vectors), -1), lengths)
        yield EmbeddingSets(values, lengths if ragged else None)


def _list_sizes(lists: Any) -> Any:
    """How long each list is; a missing one counts as empty."""
    import pyarrow.compute as pc

    return pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)


def _batches(path: Path, name: str) -> Iterator[Any]:
    import pyarrow.parquet as pq

    # Without these a whole row group and what follows it are read ahead into memory.
    file = pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
    for batch in file.iter_batches(batch_size=1024, columns=[name], use_threads=False):
        yield batch.column(0)


def _sizes(batch: Any, path: Path, name: str) -> np.ndarray:
    """Elements of each row of a column of vectors, or of lists of vectors."""
    import pyarrow.compute as pc

    if batch.null_count:
        raise ValueError(f"{path}: column {name!r} has rows without embeddings (null)")
    if not is_list(batch.type.value_type):
        return np.ones(len(batch), dtype=np.int64)
    sizes = np.asarray(pc.list_value_length(batch)).astype(np.int64)
    if len(sizes) and sizes.min() < 1:
        raise ValueError(f"{path}: column {name!r} has empty sets; leave these rows out")
    return sizes
