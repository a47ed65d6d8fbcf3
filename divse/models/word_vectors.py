"""Word vectors from text files as people have them: GloVe, or fastText's .vec with its header.

A line is a word and its numbers, separated by spaces; the word itself may hold spaces (GloVe 840B).
Only lines of wanted words are parsed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class WordVectors(NamedTuple):
    """Vectors found, float32 (F, dim); the rows they belong to, (F,); words that have none."""

    values: Tensor
    rows: Tensor
    missing: list[str]

    def report(self, words: int) -> str:
        """Say how many words have a vector, and name some that have none."""
        missing = [word for word in self.missing if not word.startswith("<")]  # <pad>, <unk> ...
        some = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
        without = f"; without one, random: {some}" if missing else ""
        return f"word vectors: {len(self.rows)} of {words} words found{without}"


def spellings(word: str) -> Iterator[str]:
    """How a word may stand in the file: as it is, or bare, or its part before a slash.

    The second is the published code's, for words like "t-shirt" and "and/or".
    """
    yield word
    bare = word.replace("-", "").replace(".", "").replace("'", "").replace("’", "")
    yield bare.split("/")[0]


def read_word_vectors(path: str | Path, words: Sequence[str], dim: int) -> WordVectors:
    """Find the vectors of words in a text file of `dim` numbers a line."""
    path = vectors_file(path)
    wanted = {spelling.encode(): None for word in words for spelling in spellings(word)}
    found: dict[bytes, np.ndarray] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file):
            if number == 0 and len(line.split()) == 2:  # the header of fastText: count and width
                continue
            if line.partition(b" ")[0] not in wanted and line.count(b" ") <= dim:
                continue
            word, *values = line.rstrip().rsplit(b" ", dim)
            if len(values) != dim or number < 2 and is_number(word.rpartition(b" ")[2]):
                raise ValueError(
                    f"{path}, line {number + 1}: {len(line.split()) - 1} numbers, text.word_dim is "
                    f"{dim}: set --text.word_dim to the file's width"
                )
            if word in wanted:
                found.setdefault(word, np.array(values, dtype=np.float32))
    return join(words, found, dim)


def vectors_file(path: str | Path) -> Path:
    """Return the path if it is a file; say where to get one if it is not."""
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"text.vectors: no file at {path}; GloVe's text files (glove.840B.300d.txt) are at "
            "https://nlp.stanford.edu/projects/glove/; an empty text.vectors starts at random"
        )
    return Path(path)


def is_number(text: bytes) -> bool:
    """Whether the end of a line's word is a number: then lines are wider than expected."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def join(words: Sequence[str], found: dict[bytes, np.ndarray], dim: int) -> WordVectors:
    """Give each word the first of its spellings that was found."""
    rows, values, missing = [], [], []
    for row, word in enumerate(words):
        vector = next((found[s] for s in map(str.encode, spellings(word)) if s in found), None)
        if vector is None:
            missing.append(word)
        else:
            rows.append(row)
            values.append(vector)
    stacked = np.stack(values) if values else np.zeros((0, dim), np.float32)
    return WordVectors(torch.from_numpy(stacked), torch.tensor(rows, dtype=torch.int64), missing)
