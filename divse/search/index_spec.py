"""What kind of index a specification means, and which one a gallery gets unasked."""

from __future__ import annotations

import importlib.util
import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

FLAT_UP_TO = 1 << 14  # elements: comparing with all of them is fast, and can prove an answer
CELLS_FROM = 8192  # sets: a scan of fewer takes less time than looking for cells
FAISS_PART = "swigfaiss.py"  # in every build of the package
_SKETCH = re.compile(r"(Cells([1-9][0-9]{0,6})?,)?Sketch([1-9][0-9]{0,4})?")


@lru_cache
def is_sketch(spec: str) -> bool:
    """Whether an index is one of sketches; any other specification is a FAISS factory string."""
    return _SKETCH.fullmatch(spec) is not None


def check_spec(spec: str) -> None:
    """Refuse what means sketches and is not written so; FAISS knows what else there is."""
    if spec.lower().startswith(("sketch", "cells")) and not is_sketch(spec):
        raise ValueError(
            f"index {spec!r}: expected Sketch, or Sketch<d> such as Sketch96, after Cells, or "
            "Cells<n>, or nothing: Cells500,Sketch96"
        )


class SketchSpec(NamedTuple):
    """What a specification of sketches says: axes, and cells, of its own or (None) as many as fit.

    `in_cells`: whether the sketches lie in cells.
    """

    dims: int | None
    cells: int | None
    in_cells: bool

    def __str__(self) -> str:
        """Return the specification."""
        return f"{f'Cells{self.cells or str()},' if self.in_cells else ''}Sketch{self.dims or ''}"


@lru_cache
def sketch_spec(spec: str) -> SketchSpec:
    """Read a specification of sketches."""
    match = _SKETCH.fullmatch(spec)
    if match is None:
        raise ValueError(f"index {spec!r} is not one of sketches")
    cells, dims = (int(number) if number else None for number in match.group(2, 3))
    return SketchSpec(dims, cells, match[1] is not None)


def has_clusters(spec: str) -> bool:
    """Whether a search may look into some clusters: cells, or what FAISS has."""
    return not is_sketch(spec) or sketch_spec(spec).in_cells


def automatic_spec(elements: int, sets: int) -> str:
    """Return the index for a gallery of so many elements and sets."""
    if elements <= FLAT_UP_TO and has_faiss():
        return "Flat"
    return "Cells,Sketch" if sets >= CELLS_FROM else "Sketch"


def has_faiss() -> bool:
    """Whether faiss is installed, and not just a folder of that name, which Python imports too."""
    spec = importlib.util.find_spec("faiss")
    folders = (spec and spec.submodule_search_locations) or ()
    return any((Path(folder) / FAISS_PART).is_file() for folder in folders)


def is_usable(spec: str) -> bool:
    """Whether an index can be searched here."""
    return is_sketch(spec) or has_faiss()
