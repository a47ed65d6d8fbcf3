"""Cells of sets that are alike: each is led by a set, and holds those most similar to it.

Leaders are small sets and compared as sets, so that no vector has to stand for a whole set. They
are found as by k-means (Lloyd 1982): drawn from the sets, and then each of their elements becomes
the mean of what is nearest to it in each set of the cell, a few times over.
"""

from __future__ import annotations

import numpy as np

from divse.search.coded_sets import CodedSets
from divse.search.scan import Scoring
from divse.sets import EmbeddingSets

LEADER_ELEMENTS = 8  # at most
ROUNDS = 4  # of moving leaders
TRIED = 128  # sets whose best others are looked for,
NEAREST = 10  # so many of them,
TRIED_SHARE = 16  # in one of so many cells:
FOUND = 0.95  # where this share of them is there, few cells are enough
BLOCK_BYTES = 1 << 25


def find_leaders(sketches: EmbeddingSets, cells: int) -> EmbeddingSets:
    """Find leaders (cells, K, d) for sketched sets (n, K, d), which lie in no order."""
    first = sketches[slice(cells)]
    lengths = first.lengths
    if lengths is not None:
        lengths = np.minimum(np.asarray(lengths), LEADER_ELEMENTS)
    leaders = EmbeddingSets(np.asarray(first.values)[:, :LEADER_ELEMENTS], lengths)
    for _ in range(ROUNDS):
        hits = CodedSets.of(leaders).search(sketches.torch(), 1, Scoring())
        leaders = _moved(leaders, sketches, hits.positions[:, 0].numpy())
    return leaders


def _moved(leaders: EmbeddingSets, sets: EmbeddingSets, cells: np.ndarray) -> EmbeddingSets:
    """Each element of a leader becomes the mean of what is nearest to it in the cell's sets."""
    sums = np.zeros(leaders.values.shape, np.float32)
    step = max(1, BLOCK_BYTES // (8 * sets.k * sets.dim))
    for first in range(0, len(sets), step):
        part, own = sets[slice(first, first + step)], cells[first : first + step]
        values = np.asarray(part.values)
        cosines = np.asarray(leaders.values)[own] @ values.transpose(0, 2, 1)
        if part.lengths is not None:
            past = np.arange(part.k) >= np.asarray(part.lengths)[:, None]
            cosines = np.where(past[:, None], -np.inf, cosines)
        nearest = np.take_along_axis(values, cosines.argmax(axis=2)[..., None], axis=1)
        np.add.at(sums, own, nearest)
    lengths = np.linalg.norm(sums, axis=-1, keepdims=True)
    moved = np.where(lengths > 0, sums / np.where(lengths > 0, lengths, 1), leaders.values)
    if leaders.lengths is not None:
        moved[np.arange(leaders.k) >= np.asarray(leaders.lengths)[:, None]] = 0
    return EmbeddingSets(moved, leaders.lengths)


def few_cells_are_enough(leaders: CodedSets, sketches: EmbeddingSets) -> bool:
    """Whether the sets most similar to one another lie in few cells, those nearest to them.

    The first of the sketches began as leaders, so the last are tried.
    """
    sets = sketches.torch()
    tried = np.arange(len(sets))[-TRIED:]
    best = CodedSets.of(sketches).search(sets[tried], min(1 + NEAREST, len(sets)), Scoring())
    asking, place = np.nonzero(best.positions.numpy() != tried[:, None])  # no set but others
    cells = leaders.search(sets, 1, Scoring()).positions[:, 0].numpy()
    there = cells[best.positions.numpy()[asking, place]]
    few = max(1, len(leaders) // TRIED_SHARE)
    near = leaders.search(sets[tried], few, Scoring()).positions.numpy()
    return bool((near[asking] == there[:, None]).any(axis=1).mean() >= FOUND)
