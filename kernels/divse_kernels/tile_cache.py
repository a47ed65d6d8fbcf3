"""Which tile a launch gets: that of tuning.py, or a better one that autotune.py has measured.

Winners lie in one small JSON file for each device and version of Triton, in ~/.cache/divse or
$DIVSE_CACHE. They hold for the sources they were measured with: after any change of the kernels,
and where the file cannot be read, the tables of tuning.py serve alone.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import triton

from divse_kernels.problem import Problem, padded

if TYPE_CHECKING:
    from divse_kernels.tuning import Tile

INTERPRETER = "interpreter"
_LIMIT = 4096  # problems remembered: more only where shapes never repeat
_tables: dict[str, Callable[[Problem], Tile]] = {}
_tiles: dict[tuple[str, Problem], Tile] = {}
_winners: dict[Path, dict[str, dict[str, Any]]] = {}


def tuned(table: Callable[[Problem], Tile]) -> Callable[[Problem], Tile]:
    """Decorate `NAME_tile(problem)` of tuning.py: a measured winner replaces what it says."""
    kernel = table.__name__.removesuffix("_tile")
    _tables[kernel] = table

    @functools.wraps(table)
    def tile(problem: Problem) -> Tile:
        found = _tiles.get((kernel, problem))
        if found is None:
            if len(_tiles) >= _LIMIT:
                _tiles.clear()
            found = _tiles[kernel, problem] = _choose(kernel, problem)
        return found

    return tile


def _choose(kernel: str, problem: Problem) -> Tile:
    default = default_tile(kernel, problem)
    winner = _read(path(problem)).get(kernel, {}).get(bucket(problem))
    if winner is None:
        return default
    try:
        return replace(default, **winner["tile"])
    except (TypeError, KeyError) as error:
        warnings.warn(f"{path(problem)}: a tile is damaged ({error})", RuntimeWarning, stacklevel=4)
        return default


def default_tile(kernel: str, problem: Problem) -> Tile:
    """What tuning.py says, whatever was measured."""
    return _tables[kernel](problem)


@contextmanager
def asked() -> Iterator[dict[tuple[str, Problem], Tile]]:
    """Collect the tiles that launches ask for within the block: by kernel and problem."""
    before = dict(_tiles)
    _tiles.clear()
    found: dict[tuple[str, Problem], Tile] = {}
    try:
        yield found
        found |= _tiles
    finally:
        _tiles.clear()
        _tiles.update(before)


@contextmanager
def forced(kernel: str, problem: Problem, tile: Tile) -> Iterator[None]:
    """Give launches of that problem a certain tile within the block."""
    before = _tiles.pop((kernel, problem), None)
    _tiles[kernel, problem] = tile
    try:
        yield
    finally:
        _tiles.pop((kernel, problem), None)
        if before is not None:
            _tiles[kernel, problem] = before


def bucket(problem: Problem) -> str:
    """What winners are filed under: problems of one bucket share a tile.

    Counts of sets go to the next power of two, and of alpha only its path matters.
    """
    values = {field.name: getattr(problem, field.name) for field in fields(problem)}
    del values["arch"]
    values["dtype"] = str(problem.dtype).removeprefix("torch.")
    values["alpha"] = problem.factors
    for side in ("row_sets", "column_sets"):
        values[side] = padded(max(1, values[side]))
    return " ".join(f"{name}={value}" for name, value in values.items())


def path(problem: Problem) -> Path:
    """The file of the present device and version of Triton."""
    on_gpu = problem.arch != INTERPRETER and torch.cuda.is_available()
    device = torch.cuda.get_device_name() if on_gpu else problem.arch
    folder = os.environ.get("DIVSE_CACHE") or Path.home() / ".cache" / "divse"
    name = re.sub(r"[^a-z0-9.]+", "-", f"{device}-triton-{triton.__version__}".lower())
    return Path(folder) / f"tiles-{name}.json"


@functools.cache
def sources() -> str:
    """A digest of the kernels: a tile that suited others may not even launch with these."""
    digest = hashlib.sha256()
    compiled = importlib.util.find_spec("divse_cuda")
    built = [Path(compiled.origin)] if compiled and compiled.origin else []
    for file in sorted(Path(__file__).parent.glob("*.py")) + built:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def _read(file: Path) -> dict[str, dict[str, Any]]:
    """Winners by kernel and bucket, read once."""
    if file not in _winners:
        _winners[file] = _load(file)
    return _winners[file]


def _load(file: Path) -> dict[str, dict[str, Any]]:
    try:
        document = json.loads(file.read_text())
        if document["sources"] != sources():
            return {}
        winners = document["winners"]
        if not all(isinstance(of_kernel, dict) for of_kernel in winners.values()):
            raise TypeError("winners are no objects")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        text = f"{file} is ignored, as it cannot be read ({error!r}); autotuning writes it anew"
        warnings.warn(text, RuntimeWarning, stacklevel=5)
        return {}
    return winners


def keep(kernel: str, problem: Problem, tile: Tile, figures: Mapping[str, float]) -> None:
    """Store a winner, on disk and for the launches to come."""
    file = path(problem)
    default = asdict(default_tile(kernel, problem))
    changed = {name: v for name, v in asdict(tile).items() if v != default[name]}
    winners = _load(file)  # another process may have written since
    winners.setdefault(kernel, {})[bucket(problem)] = {"tile": changed, **figures}
    _write(file, {"sources": sources(), "winners": winners})
    _winners[file] = winners
    _tiles.clear()


def keep_choice(kernel: str, problem: Problem, found: Mapping[str, Any]) -> None:
    """Store what was measured of a kernel that has no tiles, such as whether it is the faster."""
    file = path(problem)
    winners = _load(file)
    winners.setdefault(kernel, {})[bucket(problem)] = dict(found)
    _write(file, {"sources": sources(), "winners": winners})
    _winners[file] = winners


def kept(kernel: str, problem: Problem) -> Mapping[str, Any]:
    """What `keep_choice` stored for such a problem; empty if nothing."""
    return _read(path(problem)).get(kernel, {}).get(bucket(problem), {})


def _write(file: Path, document: dict[str, Any]) -> None:
    """Write a file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=file.parent, suffix=".part", delete=False) as part:
        json.dump(document, part, indent=1)
    os.replace(part.name, file)


def forget() -> None:
    """Read winners again at the next launch, such as after $DIVSE_CACHE has changed."""
    _winners.clear()
    _tiles.clear()
