"""What a generated scene consists of: objects with six facts each, drawn from a stable stream.

A scene holds objects on a 3 x 3 grid of cells, at most one a cell. Scenes of a split are kept as
one int8 array (I, M, 6): M is the largest number of objects, the last axis follows FACTS, and a
row of -1 means "no object".
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FACTS: dict[str, tuple[str, ...]] = {
    "size": ("small", "large"),
    "texture": ("plain", "striped", "dotted"),
    "colour": ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink"),
    "shape": ("circle", "square", "triangle", "cross", "ring", "star"),
    "row": ("top", "middle", "bottom"),
    "column": ("left", "centre", "right"),
}
FACT = {name: index for index, name in enumerate(FACTS)}
CELLS = len(FACTS["row"]) * len(FACTS["column"])

Scenes = NDArray[np.int8]  # (I, M, 6)


class Draws:
    """Whole numbers from the raw PCG64 stream of a key, the same under every NumPy version.

    NumPy promises the stream of a bit generator for ever, but not what `Generator` methods make
    of it (NEP 19), so the few draws that scenes need are made here.
    """

    def __init__(self, *key: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(key))

    def below(self, limit: int) -> int:
        """Draw from 0 .. limit - 1 (bias under limit / 2^32)."""
        return (int(self._bits.random_raw()) >> 32) * limit >> 32

    def between(self, low: int, high: int) -> int:
        """Draw from low .. high, both included."""
        return low + self.below(high - low + 1)

    def choose(self, limit: int, count: int) -> list[int]:
        """Draw `count` different numbers from 0 .. limit - 1, in random order."""
        pool = list(range(limit))
        for i in range(count):
            j = i + self.below(limit - i)
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:count]

    def octets(self, count: int) -> NDArray[np.uint8]:
        """Draw `count` bytes."""
        words = np.asarray(self._bits.random_raw(-(-count // 8)), dtype="<u8")
        return words.view(np.uint8)[:count]


def draw_objects(draws: Draws, fewest: int, most: int) -> NDArray[np.int8]:
    """Draw one scene, (M, 6) with M = most; rows past the number of objects are -1."""
    objects = np.full((most, len(FACTS)), -1, dtype=np.int8)
    columns = len(FACTS["column"])
    cells = draws.choose(CELLS, draws.between(fewest, most))
    for i, cell in enumerate(cells):
        looks = [draws.below(len(FACTS[name])) for name in ("size", "texture", "colour", "shape")]
        objects[i] = [*looks, cell // columns, cell % columns]
    return objects
