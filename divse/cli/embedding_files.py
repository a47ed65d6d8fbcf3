"""Embeddings and ids from files: .npy, .npz, .safetensors and Parquet, read as a stream.

.npy           (N, K, D); (N, D) for sets of one element; or packed (elements, D) with lengths;
               NAME.rows.parquet and NAME.lengths.npy of an exported gallery are read with it
.safetensors   the tensor "embeddings" (or the only one) in these shapes, and maybe "lengths" and
               "ids"
.npz           the same of an archive's arrays; they are read into memory
.parquet       a column "embeddings" (or the only list column): for each row a list of vectors,
               or one vector; a column "id" gives the ids, the others become columns
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, is_zipfile

import numpy as np

from divse.cli.column_files import TABLES, ids_of, read_table
from divse.cli.parquet_sets import blocks_of_lists, is_list
from divse.npy import read_npy
from divse.sets import Array, EmbeddingSets, pad_elements

READ_BYTES = 1 << 25  # of fp32 values at a time
BESIDE = ("lengths", "ids")  # arrays that may stand beside the embeddings in one file
FLOATS = {"float16", "float32", "float64", "f16", "bf16", "f32", "f64"}  # of numpy, of safetensors


@dataclass
class Source:
    """Sets from anywhere: a stream of blocks, their number, and what is known of each set.

    `labels` name what was embedded, {"text": ...} or {"image": ...}; `metadata` is what a new
    gallery remembers of the model.
    """

    blocks: Iterable[EmbeddingSets]
    total: int
    ids: Iterable[Any] | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    labels: list[dict[str, str]] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def names(self) -> Iterator[dict[str, Any]]:
        """For each set what it is called in an answer: its label, its id, or its number."""
        labels: Any = [{}] * self.total if self.labels is None else self.labels
        if self.ids is None:
            return (label or {"number": number} for number, label in enumerate(labels))
        plain = (getattr(name, "as_py", lambda name=name: name)() for name in self.ids)
        return ({"id": name, **label} for name, label in zip(plain, labels, strict=True))


def unit_batches(queries: Source, size: int) -> Iterator[EmbeddingSets]:
    """Yield up to `size` query sets at a time, checked and of unit norm."""
    if not queries.total:
        raise ValueError("there are no queries: the file holds 0 sets")
    done = 0
    for block in queries.blocks:
        try:
            sets = EmbeddingSets.of(block.values, block.lengths)
        except (ValueError, TypeError) as error:
            raise type(error)(f"queries from number {done} on: {error}") from None
        for start in range(0, len(sets), size):
            yield sets[start : start + size]
        done += len(sets)


def read_embeddings(path: Path, lengths: Path | None = None, ids: Path | None = None) -> Source:
    """Open a file of embeddings, with the lengths and ids that other files give."""
    readers: dict[str, Callable[[Path, np.ndarray | None], Source]] = {
        ".npy": _read_npy,
        ".npz": _read_npz,
        ".safetensors": _read_safetensors,
        ".parquet": _read_parquet,
    }
    for file in (path, lengths, ids):
        if file is not None and not file.is_file():
            raise FileNotFoundError(f"{file}: there is no such file")
    if path.suffix not in readers:
        raise ValueError(f"{path}: expected a file called {', '.join(f'*{s}' for s in readers)}")
    exported = path.with_suffix(".rows.parquet") if path.suffix == ".npy" else None
    if exported is not None and ids is None and exported.is_file():
        return _read_exported(path, exported, lengths)
    sizes = None if lengths is None else read_npy(lengths, "r")
    source = readers[path.suffix](path, sizes)
    if ids is not None:
        source.ids = read_ids(ids)
    return source


def _read_exported(path: Path, rows: Path, lengths: Path | None) -> Source:
    """An .npy file as `divse-search export` leaves it: ids, columns and lengths beside it."""
    import pyarrow.parquet as pq

    beside = path.with_suffix(".lengths.npy")
    if lengths is None and beside.is_file():
        lengths = beside
    source = _read_npy(path, None if lengths is None else read_npy(lengths, "r"))
    table = pq.read_table(rows)
    source.columns = {name: table.column(name) for name in table.column_names}
    source.ids = source.columns.pop("id", None)
    return source


def read_ids(path: Path) -> Any:
    """Read ids: .npy, a .json list, the column id of .csv or .parquet, or text, one id a line."""
    if path.suffix == ".npy":
        return read_npy(path, "r")
    if path.suffix in TABLES:
        return ids_of(path, read_table(path)).to_pylist()
    text = read_text(path)
    if path.suffix == ".json":
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{path} is no JSON: {error}") from None
        if not isinstance(values, list):
            raise ValueError(f"{path}: expected a JSON list of ids, found {type(values).__name__}")
        return values
    lines = text.splitlines()
    if "" in lines:
        raise ValueError(f"{path}: line {lines.index('') + 1} is empty; give one id a line")
    return lines


def read_text(path: Path) -> str:
    """Read a text file; errors name it."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: {error}") from None


def _read_npy(path: Path, lengths: np.ndarray | None) -> Source:
    array = read_npy(path, "r")
    _check_type(path, array.dtype.name)
    return _from_rows(path, array.shape, lambda rows: array[rows], lengths)


def _read_npz(path: Path, lengths: np.ndarray | None) -> Source:
    if not is_zipfile(path):
        raise ValueError(f"{path} is no .npz archive; a single array is called .npy")
    with np.load(path, allow_pickle=False) as archive:
        name = _main_one(path, archive.files)
        try:
            array, *beside = (archive.get(key) for key in (name, *BESIDE))
        except (ValueError, BadZipFile) as error:
            raise ValueError(f"{path} does not hold plain numbers: {error}") from None
    _check_type(path, array.dtype.name)
    sizes, ids = beside
    source = _from_rows(path, array.shape, array.__getitem__, sizes if lengths is None else lengths)
    source.ids = ids
    return source


def _read_safetensors(path: Path, lengths: np.ndarray | None) -> Source:
    from safetensors import SafetensorError, safe_open

    try:
        file: Any = safe_open(str(path), framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    names = list(file.keys())
    tensor = file.get_slice(_main_one(path, names))
    _check_type(path, tensor.get_dtype())
    if lengths is None and "lengths" in names:
        lengths = file.get_tensor("lengths").numpy()
    source = _from_rows(path, tuple(tensor.get_shape()), lambda rows: tensor[rows], lengths)
    if "ids" in names:
        source.ids = file.get_tensor("ids").numpy()
    return source


def _main_one(path: Path, names: list[str]) -> str:
    """Which of a file's arrays holds the embeddings."""
    others = [name for name in names if name not in BESIDE]
    if "embeddings" not in names and len(others) != 1:
        raise ValueError(f"{path}: expected one array called embeddings, found {', '.join(names)}")
    return "embeddings" if "embeddings" in names else others[0]


def _check_type(path: Path, dtype: str) -> None:
    if dtype.lower() not in FLOATS:
        raise TypeError(
            f"{path} holds {dtype}; expected floating-point numbers: save array.astype('float32')"
        )


def _from_rows(
    path: Path,
    shape: tuple[int, ...],
    read: Callable[[slice], Array],
    lengths: np.ndarray | None,
) -> Source:
    """A source of rows that can be sliced: sets (N, K, D), vectors (N, D), or packed elements."""
    if len(shape) not in (2, 3):
        raise ValueError(f"{path} holds shape {shape}; expected (N, K, D), or (N, D)")
    if lengths is None:
        return Source(_sliced(shape, read), shape[0])
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu":
        raise ValueError(
            f"lengths must be whole numbers (N,), found {lengths.dtype} {lengths.shape}"
        )
    if len(shape) == 3 and len(lengths) == shape[0]:
        return Source(_sliced(shape, read, lengths), shape[0])
    if len(shape) == 2 and int(lengths.sum()) == shape[0] and lengths.min() > 0:
        return Source(_packed(shape, read, lengths), len(lengths))
    raise ValueError(
        f"{path} holds shape {shape} and there are {len(lengths)} lengths of sum "
        f"{int(lengths.sum())}: expected one length for each set of (N, K, D), or packed elements "
        "(sum, D)"
    )


def _sliced(
    shape: tuple[int, ...], read: Callable[[slice], Array], lengths: np.ndarray | None = None
) -> Iterator[EmbeddingSets]:
    step = max(1, READ_BYTES // (4 * int(np.prod(shape[1:]))))
    for start in range(0, shape[0], step):
        rows = slice(start, min(start + step, shape[0]))
        values = read(rows)
        if len(shape) == 2:
            values = values[:, None]
        yield EmbeddingSets(values, None if lengths is None else np.asarray(lengths[rows]))


def _packed(
    shape: tuple[int, ...], read: Callable[[slice], Array], lengths: np.ndarray
) -> Iterator[EmbeddingSets]:
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    step = max(1, READ_BYTES // (4 * shape[1] * int(lengths.max())))
    for start in range(0, len(lengths), step):
        sizes = np.asarray(lengths[start : start + step], dtype=np.int64)
        elements = read(slice(int(offsets[start]), int(offsets[start + len(sizes)])))
        yield EmbeddingSets(pad_elements(np.asarray(elements, dtype=np.float32), sizes), sizes)


def _read_parquet(path: Path, lengths: np.ndarray | None) -> Source:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if lengths is not None:
        raise ValueError("lengths of a Parquet file are those of its lists: leave them out")
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowException as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    names = file.schema_arrow.names
    lists = [column.name for column in file.schema_arrow if is_list(column.type)]
    name = "embeddings" if "embeddings" in names else lists[0] if len(lists) == 1 else None
    if name is None:
        raise ValueError(f"{path}: expected a list column called embeddings, found {names}")
    rows = file.read(columns=[column for column in names if column != name])
    columns = {column: rows.column(column) for column in rows.column_names}
    ids = columns.pop("id", None)
    return Source(blocks_of_lists(path, name), file.metadata.num_rows, ids, columns)
