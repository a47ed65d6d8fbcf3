"""What kind of index a specification means, and which one a gallery gets unasked."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

FLAT_UP_TO = 1 << 14  # elements: comparing with all of them is fast, and can prove an answer
FAISS_PART = "swigfaiss.py"  # in every build of the package
_SKETCH = re.compile(r"Sketch([1-9][0-9]{0,4})?")


def is_sketch(spec: str) -> bool:
    """Whether an index is one of sketches; any other specification is a FAISS factory string."""
    return _SKETCH.fullmatch(spec) is not None


def check_spec(spec: str) -> None:
    """Refuse what means sketches and is not written so; FAISS knows what else there is."""
    if spec.lower().startswith("sketch") and not is_sketch(spec):
        raise ValueError(f"index {spec!r}: expected Sketch, or Sketch<d> such as Sketch96")


def sketch_dims(spec: str) -> int | None:
    """Return d of "Sketch<d>", None of "Sketch", which goes by the gallery's elements."""
    match = _SKETCH.fullmatch(spec)
    return int(match[1]) if match and match[1] else None


def automatic_spec(elements: int) -> str:
    """Return the index for a gallery of so many elements."""
    return "Flat" if elements <= FLAT_UP_TO and has_faiss() else "Sketch"


def has_faiss() -> bool:
    """Whether faiss is installed, and not just a folder of that name, which Python imports too."""
    spec = importlib.util.find_spec("faiss")
    folders = (spec and spec.submodule_search_locations) or ()
    return any((Path(folder) / FAISS_PART).is_file() for folder in folders)


def is_usable(spec: str) -> bool:
    """Whether an index can be searched here."""
    return is_sketch(spec) or has_faiss()
