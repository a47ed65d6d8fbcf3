"""Where the codes of a sketch lie: 16 sets side by side, four axes of each in turn.

A scan multiplies four axes of 16 sets at a time, and every sum stays in the lane of its set. Sets
are taken in groups of 16, cell by cell, and within these by their sizes where these differ, so that
those of a group are alike; a group has as many slots (elements of each of its sets) as its largest
set has elements.

codes (slots, ceil(d / 4), 16, 4) int8, zero past d and past a set's elements
scales (slots, 16) fp32, likewise
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from divse.sets import EmbeddingSets, pad_elements

LANES, STEP = 16, 4


class Block(NamedTuple):
    """Elements of some groups, of each the row in the segment and its place.

    Slots count from `first`, there are `slots`; `sets` is how many sets these groups hold.
    """

    rows: np.ndarray
    slot: np.ndarray
    lane: np.ndarray
    first: int
    slots: int
    sets: int


@dataclass(frozen=True)
class Lanes:
    """The places of a segment's sets.

    lengths: (n,) elements of the sets in the order of their places
    order: (n,) int32, which set it is; None if all have one size and their own order
    begins: (n,) rows where they begin among all elements
    """

    lengths: np.ndarray
    order: np.ndarray | None
    begins: np.ndarray

    @classmethod
    def of(cls, lengths: np.ndarray, order: np.ndarray | None) -> Lanes:
        """Return the places, in a given order, of sets of these sizes, one after another."""
        begins = np.cumsum(lengths) - lengths
        if order is None:
            return cls(lengths, None, begins)
        return cls(lengths[order], order, begins[order])

    @cached_property
    def even(self) -> bool:
        """Whether all sets have one size."""
        return bool((self.lengths == self.lengths[0]).all())

    @cached_property
    def firsts(self) -> np.ndarray:
        """Slots (groups + 1,) where groups begin; the last is how many there are."""
        largest = np.maximum.reduceat(self.lengths, np.arange(0, len(self.lengths), LANES))
        return np.concatenate([[0], np.cumsum(largest)])

    def shape(self, dims: int) -> tuple[int, int, int, int]:
        """Shape of the codes along `dims` axes."""
        return int(self.firsts[-1]), -(-dims // STEP), LANES, STEP

    def blocks(self, elements: int) -> Iterator[Block]:
        """All groups, about so many elements at a time."""
        groups = len(self.firsts) - 1
        begin = 0
        while begin < groups:
            until = self.firsts[begin] + max(1, elements // LANES)
            end = max(begin + 1, int(np.searchsorted(self.firsts, until, "right")) - 1)
            yield self._block(begin, end)
            begin = end

    def _block(self, begin: int, end: int) -> Block:
        own = np.arange(begin * LANES, min(end * LANES, len(self.lengths)))
        lengths = self.lengths[own]
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        rows = np.repeat(self.begins[own], lengths) + within
        first, slots = self.firsts[begin], self.firsts[end] - self.firsts[begin]
        slot = np.repeat(self.firsts[own // LANES] - first, lengths) + within
        return Block(rows, slot, np.repeat(own % LANES, lengths), first, slots, len(own))

    def decode(
        self, codes: np.ndarray, scales: np.ndarray, dims: int, elements: int
    ) -> Iterator[EmbeddingSets]:
        """The sketched sets (m, K, d) in fp32, in the order of their places."""
        done = 0
        for block in self.blocks(elements):
            own = slice(block.first, block.first + block.slots)
            values = codes[own].transpose(0, 2, 1, 3).reshape(block.slots, LANES, -1)[..., :dims]
            values = values * scales[own][..., None]
            lengths = self.lengths[done : done + block.sets]
            padded = pad_elements(values[block.slot, block.lane], lengths)
            yield EmbeddingSets(padded, None if self.even else lengths)
            done += block.sets


def in_order(lengths: np.ndarray, cells: np.ndarray | None) -> np.ndarray | None:
    """Return the sets (n,) int32 by cell and size; None where they have neither."""
    if cells is None and (lengths == lengths[0]).all():
        return None
    keys = (lengths,) if cells is None else (lengths, cells)
    return np.lexsort(keys).astype(np.int32)
