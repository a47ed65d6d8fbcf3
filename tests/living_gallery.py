"""A gallery whose content can be told from its ids, and a writer that changes it at random.

The vectors of an id are drawn from the id (and its version, raised by every update), so a reader
can say what any snapshot must hold. A writer announces every state before it is committed.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np

from divse.search.gallery import Gallery
from divse.sets import EmbeddingSets

K, DIM = 3, 16


def sets_of(ids, versions) -> EmbeddingSets:
    """The sets of these ids in these versions."""
    values = np.stack(
        [
            np.random.default_rng([number, version]).standard_normal((K, DIM), dtype=np.float32)
            for number, version in zip(ids, versions, strict=True)
        ]
    )
    return EmbeddingSets(values / np.linalg.norm(values, axis=-1, keepdims=True))


def create(path: Path, count: int = 40) -> Gallery:
    """A gallery of `count` sets of version 0."""
    ids = list(range(count))
    return Gallery.create(path, sets_of(ids, [0] * count), ids, {"version": [0] * count})


def check(gallery: Gallery) -> None:
    """Assert that every set is what its id and version say."""
    if len(gallery):
        expected = sets_of(gallery.ids, gallery.columns["version"].to_pylist())
        np.testing.assert_array_equal(gallery.sets().values, expected.values.astype(np.float16))


class Writer:
    """Applies random operations; `announce` hears (generation, rows) before each is begun."""

    def __init__(self, path: Path, seed: int, announce) -> None:
        self.path, self._random, self._announce = path, random.Random(seed), announce

    def step(self) -> None:
        """Do one operation."""
        gallery = Gallery.open(self.path)
        rows = {row["id"]: row["version"] for row in gallery.rows.to_pylist()}
        draw = self._random.random()
        some = self._random.sample(sorted(rows), min(len(rows), self._random.randint(1, 5)))
        if draw < 0.45 or len(rows) < 10:
            first = gallery.manifest.next_id
            new = list(range(first, first + self._random.randint(1, 8)))
            self._tell(gallery, {**rows, **dict.fromkeys(new, 0)})
            gallery.add(sets_of(new, [0] * len(new)), new, {"version": [0] * len(new)})
        elif draw < 0.7 or len(rows) > 200:
            self._tell(gallery, {row: rows[row] for row in rows if row not in some})
            gallery.remove(some)
        elif draw < 0.85:
            versions = [rows[row] + 1 for row in some]
            kept = {row: rows[row] for row in rows if row not in some}
            self._tell(gallery, {**kept, **dict(zip(some, versions, strict=True))})
            gallery.update(some, sets_of(some, versions), {"version": versions})
        elif draw < 0.93:
            self._tell(gallery, rows)
            gallery.compact()
        else:
            self._tell(gallery, rows)
            gallery.build_index("Flat")

    def _tell(self, gallery: Gallery, rows: dict[int, int]) -> None:
        self._announce(gallery.manifest.generation + 1, list(rows.items()))


def line(generation: int, rows: list[tuple[int, int]]) -> bytes:
    """An announcement as one line."""
    return json.dumps([generation, rows]).encode() + b"\n"
