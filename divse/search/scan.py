"""Exact scan: every query against every set of a gallery, in blocks of bounded memory.

Each block goes to `divse.similarity.search`, which runs the C++ or Triton kernel where it can;
only the best `topk` of each query are kept. Later blocks have later positions, so a stable merge
keeps ties in the order of position. Where a GPU scores, host blocks stream to it: one is copied
while the one before is scanned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from divse.sets import EmbeddingSets, as_tensor
from divse.similarity.api import search as search_in_memory
from divse.similarity.streaming import search_stream, streams
from divse.similarity.topk import ordered_topk


class Hits(NamedTuple):
    """The best sets of each query: `scores` (B, topk), best first, and `positions` (B, topk)."""

    scores: Tensor
    positions: Tensor


@dataclass(frozen=True)
class Scoring:
    """How sets are compared: a similarity, its parameters, and the implementation asked for."""

    similarity: str = "smooth_chamfer"
    alpha: float = 16.0
    log_mean: bool = False
    impl: str = "auto"
    parameters: dict[str, Any] = field(default_factory=dict)

    def keywords(self) -> dict[str, Any]:
        """Return the keyword arguments of the similarity functions, but `impl`."""
        return {
            "similarity": self.similarity,
            "alpha": self.alpha,
            "log_mean": self.log_mean,
            **self.parameters,
        }


def exact_scan(
    queries: EmbeddingSets,
    blocks: Iterable[tuple[int, EmbeddingSets]],
    topk: int,
    scoring: Scoring,
    progress: Callable[[int], object] | None = None,
    excluded: Tensor | None = None,
) -> Hits:
    """Return the best `topk` scores and positions (B, topk) over all blocks, ties by position.

    `blocks` yields (position of the first set, sets (n, L, D)) in order of position, on any
    device; results are on that of `queries` (B, K, D). `progress` hears the number of sets of each
    block. `excluded` (N,) bool, on the device of `queries`, leaves sets out by position; where too
    few are left, the last scores are -inf and their positions -1.
    """
    queries, told = queries.torch(), _told(blocks, progress)
    first = next(told, None)
    if first is None:
        raise ValueError("there is nothing to search: the gallery gave no blocks")
    blocks = chain([first], told)
    if streams(queries, first[1], topk, scoring.similarity, scoring.impl):
        found = search_stream(queries, blocks, topk, excluded=excluded, **scoring.keywords())
        return Hits(*found)
    return _block_by_block(queries, blocks, topk, scoring, excluded)


def _told(
    blocks: Iterable[tuple[int, EmbeddingSets]], progress: Callable[[int], object] | None
) -> Iterator[tuple[int, EmbeddingSets]]:
    """The same blocks; `progress` hears of each when it was worked on."""
    for start, block in blocks:
        yield start, block
        if progress is not None:
            progress(len(block))


def _block_by_block(
    queries: EmbeddingSets,
    blocks: Iterable[tuple[int, EmbeddingSets]],
    topk: int,
    scoring: Scoring,
    excluded: Tensor | None,
) -> Hits:
    """Search each block on its own and keep the best of all."""
    device = as_tensor(queries.values).device
    best: Hits | None = None
    for start, block in blocks:
        count = min(topk, len(block))
        out = None if excluded is None else excluded[start : start + len(block)]
        found = search_in_memory(
            queries,
            block.torch(device),
            count,
            excluded=out,
            impl=scoring.impl,
            **scoring.keywords(),
        )
        own = as_tensor(found.ids)
        shifted = Hits(as_tensor(found.scores), torch.where(own < 0, -1, own + start))
        best = shifted if best is None else merge(best, shifted, topk)
    assert best is not None
    return best


def merge(earlier: Hits, later: Hits, topk: int) -> Hits:
    """Return the best `topk` of two results, all positions of `earlier` being the lower ones."""
    scores = torch.cat([earlier.scores, later.scores], -1)
    return best_of(scores, torch.cat([earlier.positions, later.positions], -1), topk)


def best_of(scores: Tensor, positions: Tensor, topk: int) -> Hits:
    """Return the best `topk` columns of scores (B, M) with their positions (B, M).

    Among equal scores the earlier column wins, so columns must be in order of position.
    """
    ordered, columns = ordered_topk(scores, min(topk, scores.shape[-1]))
    return Hits(ordered, positions.gather(-1, columns))
