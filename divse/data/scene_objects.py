"""What a generated scene consists of: objects with six facts each, drawn from a stable stream.

A scene holds objects on a 3 x 3 grid of cells, at most one a cell. Scenes of a split are kept as
one int8 array (I, M, 6): M is the largest number of objects, the last axis follows FACTS, and a
row of -1 means "no object".
"""

from __future__ import annotations

from functools import lru_cache

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
LOOKS = ("size", "texture", "colour", "shape")
# The first few of a small vocabulary are far apart.
DISTINCT_COLOURS = ("red", "blue", "green", "yellow", "purple", "orange", "cyan", "pink")
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


def draw_objects(
    draws: Draws, fewest: int, most: int, colours: int = len(FACTS["colour"])
) -> NDArray[np.int8]:
    """Draw one scene, (M, 6) with M = most; rows past the number of objects are -1."""
    objects = np.full((most, len(FACTS)), -1, dtype=np.int8)
    columns = len(FACTS["column"])
    cells = draws.choose(CELLS, draws.between(fewest, most))
    for i, cell in enumerate(cells):
        looks = [values[draws.below(len(values))] for values in allowed(colours).values()]
        objects[i] = [*looks, cell // columns, cell % columns]
    return objects


def change_one_look(
    objects: NDArray[np.int8], draws: Draws, colours: int = len(FACTS["colour"])
) -> NDArray[np.int8]:
    """Copy a scene (M, 6) with the size, texture, colour or shape of one object changed."""
    changed = objects.copy()
    thing = draws.below(int((objects[:, 0] >= 0).sum()))
    name = LOOKS[draws.below(len(LOOKS))]
    others = [v for v in allowed(colours)[name] if v != objects[thing, FACT[name]]]
    changed[thing, FACT[name]] = others[draws.below(len(others))]
    return changed


@lru_cache
def allowed(colours: int) -> dict[str, list[int]]:
    """Values of each look, with the given number of colours."""
    values = {name: list(range(len(FACTS[name]))) for name in LOOKS}
    named = FACTS["colour"]
    values["colour"] = sorted(named.index(word) for word in DISTINCT_COLOURS[:colours])
    return values
