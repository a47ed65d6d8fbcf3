"""Sets as int8 codes that lie side by side, and the scan that scores them by the codes alone.

Where the sets lie in cells, a leader stands for each cell: the scan scores the leaders, and then
the sets of the cells whose leaders are the best. The C++ kernel reads the codes; without it they
are decoded and scored like any sets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from divse.search.scan import Hits, Scoring, exact_scan
from divse.search.sketch_lanes import LANES, STEP, Block, Lanes
from divse.search.stored_scan import parameters_of, serves_codes
from divse.sets import EmbeddingSets, unpad_elements
from divse.similarity import certified, dispatch, native
from divse.similarity.inputs import read_sets

BLOCK_BYTES = 1 << 25  # of sets in fp32, where no kernel reads the codes


class Cells(NamedTuple):
    """A set that leads each of C cells, and the places (C + 1,) int64 where the cells begin."""

    leaders: CodedSets
    begins: np.ndarray


@dataclass(frozen=True)
class CodedSets:
    """Codes (slots, ceil(d / 4), 16, 4) int8 and scales (slots, 16) fp32, as `lanes` says."""

    codes: np.ndarray
    scales: np.ndarray
    lanes: Lanes
    dims: int
    cells: Cells | None = None

    @classmethod
    def of(cls, sets: EmbeddingSets) -> CodedSets:
        """Encode sets (n, K, d) of about unit length, in their own order."""
        elements, lengths = unpad_elements(sets)
        lanes = Lanes.of(lengths, None)
        codes = np.zeros(lanes.shape(sets.dim), np.int8)
        scales = np.zeros(codes.shape[:1] + codes.shape[2:3], np.float32)
        for block in lanes.blocks(len(elements)):
            own = slice(block.first, block.first + block.slots)
            codes[own], scales[own] = encoded(elements[block.rows], block)
        return cls(codes, scales, lanes, sets.dim)

    def __len__(self) -> int:
        """Return how many sets there are."""
        return len(self.lanes.lengths)

    def search(
        self,
        queries: EmbeddingSets,
        topk: int,
        scoring: Scoring,
        excluded: np.ndarray | None = None,
        probe: int | None = None,
    ) -> Hits:
        """Return the best estimates and sets (B, topk) for `queries` (B, K, d), in any order.

        `excluded` is a bitmap of the sets, `probe` how many cells a query looks into (None: all);
        without the kernel each looks into those of all queries. -inf and -1 where fewer sets may
        be found.
        """
        if scoring.impl == "triton":  # codes lie in the host's memory, whoever scores the sets
            scoring = Scoring(**vars(scoring) | {"impl": "auto"})
        if serves_codes(queries, scoring):
            dispatch.calls["native.estimates"] += 1
            similarity, given = parameters_of(scoring)
            sets = read_sets(queries, None, "queries")
            found = native.estimates(sets, self.native, topk, similarity, given, excluded, probe)
            return Hits(*found)
        return self._decoded(queries, topk, scoring, excluded, probe)

    @cached_property
    def native(self) -> Any:
        """What the C++ module searches: everything is checked when it is made."""
        import divse_native

        lanes, cells = self.lanes, self.cells
        return divse_native.Int8Gallery(
            self.codes,
            self.scales,
            len(self),
            self.dims,
            None if lanes.even else lanes.lengths,
            lanes.order,
            None if cells is None else cells.leaders.native,
            None if cells is None else cells.begins,
        )

    def _decoded(
        self,
        queries: EmbeddingSets,
        topk: int,
        scoring: Scoring,
        excluded: np.ndarray | None,
        probe: int | None,
    ) -> Hits:
        """The same for any similarity and implementation."""
        order = self.lanes.order if self.lanes.order is not None else np.arange(len(self))
        out = np.zeros(len(self), dtype=bool)
        if excluded is not None:
            out = np.unpackbits(excluded, count=len(self), bitorder="little")[order] == 1
        if probe is not None and self.cells is not None:
            out |= self._outside(queries, probe, scoring)
        mask = torch.from_numpy(out)
        hits = exact_scan(queries, self._blocks(), topk, scoring, excluded=mask)
        places = hits.positions.numpy()
        found = np.where(places < 0, -1, order[np.maximum(places, 0)])
        return Hits(hits.scores, torch.from_numpy(found))

    def _outside(self, queries: EmbeddingSets, probe: int, scoring: Scoring) -> np.ndarray:
        """Which places (n,) are in no cell that one of the queries looks into."""
        assert self.cells is not None
        leaders, begins = self.cells
        found = leaders.search(queries, min(probe, len(leaders)), scoring).positions.numpy()
        outside = np.ones(len(begins) - 1, dtype=bool)
        outside[found] = False
        return np.repeat(outside, np.diff(begins))

    def _blocks(self) -> Iterator[tuple[int, EmbeddingSets]]:
        """The sets in fp32, in the order of their places."""
        first = 0
        elements = max(1, BLOCK_BYTES // (4 * self.dims))
        for sets in self.lanes.decode(self.codes, self.scales, self.dims, elements):
            yield first, sets.torch()
            first += len(sets)


def encoded(elements: np.ndarray, block: Block) -> tuple[np.ndarray, np.ndarray]:
    """Return codes (slots, steps, 16, 4) and scales (slots, 16) of a block's elements (e, d)."""
    dims = elements.shape[1]
    steps = -(-dims // STEP)
    found, lengths, _ = certified.encode(torch.from_numpy(elements)[:, None])
    codes = np.zeros((block.slots, LANES, steps * STEP), np.int8)
    codes[block.slot, block.lane, :dims] = found[:, 0].numpy()
    scales = np.zeros((block.slots, LANES), np.float32)
    scales[block.slot, block.lane] = lengths[:, 0].numpy()
    by_step = codes.reshape(block.slots, LANES, steps, STEP).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(by_step), scales
