"""Vocabularies of the older code (VSE++, SCAN, their kin): JSON, or a pickled `vocab.Vocabulary`.

Both hold word2idx, idx2word and idx, the number of words. A pickle is read by an unpickler that
knows that one class and nothing else, so a file can give words, but never run anything.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from divse.data.files import read_json

SUFFIXES = (".json", ".pkl", ".pickle")


class _Words:
    """Stands for `vocab.Vocabulary`: an object with attributes, and no behaviour."""

    word2idx: Mapping[str, int]


class _WordsUnpickler(pickle.Unpickler):
    """Knows `vocab.Vocabulary`; numbers, strings, lists and dicts need no class."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in, or refuse."""
        if (module, name) == ("vocab", "Vocabulary"):
            return _Words
        raise pickle.UnpicklingError(
            f"it names {module}.{name}, and only vocab.Vocabulary is accepted"
        )


def read_words(path: str | Path) -> list[str]:
    """Words of a vocabulary of the older code, in the order of their ids."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no vocabulary at {path}")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"vocabularies are read from {', '.join(SUFFIXES)}, got {path.name!r}")
    word_ids = _from_json(path) if path.suffix == ".json" else _from_pickle(path)
    return _in_order(path, word_ids)


def _from_json(path: Path) -> Any:
    content = read_json(path)
    return content.get("word2idx") if isinstance(content, dict) else None


def _from_pickle(path: Path) -> Any:
    try:
        found = _WordsUnpickler(io.BytesIO(path.read_bytes())).load()
    except Exception as error:  # a damaged or hostile pickle may raise anything
        raise ValueError(f"{path} is no pickled vocabulary: {error}") from None
    return getattr(found, "word2idx", None) if isinstance(found, _Words) else None


def _in_order(path: Path, word_ids: Any) -> list[str]:
    """List words by id; ids must be 0, 1, 2, ... without a gap."""
    if not isinstance(word_ids, dict) or not all(
        isinstance(word, str) and isinstance(index, int) for word, index in word_ids.items()
    ):
        raise ValueError(f"{path} is no vocabulary of the older code: no word2idx, word -> id")
    if sorted(word_ids.values()) != list(range(len(word_ids))):
        raise ValueError(f"{path}: ids of the words must be 0 to {len(word_ids) - 1}, each once")
    return sorted(word_ids, key=word_ids.__getitem__)
