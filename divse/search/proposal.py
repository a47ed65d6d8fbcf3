"""What an index is asked for, and what it returns: the candidates of each query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from divse.search.filters import Selection
from divse.search.request import Request
from divse.search.scan import Scoring
from divse.sets import EmbeddingSets

DEEPER = 2  # times as deep as in the round before,
WIDER = 4  # times as many clusters


@dataclass(frozen=True)
class Effort:
    """How deep and wide a round looks; `rounds` are left after it."""

    depth: int
    probe: int
    rounds: int

    def more(self) -> Effort:
        """The next round's."""
        return Effort(self.depth * DEEPER, self.probe * WIDER, self.rounds - 1)


class Proposal(NamedTuple):
    """Candidates of B queries.

    `candidates` (B, M) int64: positions, each once and in ascending order in a row; -1 between
    them is none. `limits` (B, K): what no cosine of a query element with an element that was not
    returned exceeds, where the index is exhaustive; -inf where all elements were returned, and
    where a query has fewer than K elements. `bytes_read` of the index, about.
    """

    candidates: np.ndarray
    limits: np.ndarray
    bytes_read: int


class Best(NamedTuple):
    """The best candidates of B queries by exact score: `scores` and `positions` (B, topk).

    -inf and -1 where there are fewer. `seen` (B,) sets were scored exactly; `limits` and
    `bytes_read` as of a `Proposal`, None where the index is not exhaustive.
    """

    scores: np.ndarray
    positions: np.ndarray
    seen: np.ndarray
    limits: np.ndarray | None
    bytes_read: int


class PrefilterIndex(Protocol):
    """An index that proposes sets: `ElementIndex` or `SketchIndex`."""

    @property
    def spec(self) -> str:
        """Its specification."""

    @property
    def lists(self) -> int:
        """Clusters that it can look into, 1 if it has none."""

    def first_effort(self, topk: int, passing: float) -> Effort:
        """What the first round does; `passing` is the share of the sets that pass the filter."""

    def fit(self, depth: int, topk: int) -> int:
        """The depth next to `depth` that there is and, where sets are proposed, gives `topk`."""

    def is_exhaustive(self, probe: int) -> bool:
        """Whether `Proposal.limits` hold."""

    def propose(
        self, queries: EmbeddingSets, scoring: Scoring, effort: Effort, selection: Selection | None
    ) -> Proposal:
        """Propose sets for each of the queries (B, K, D), on the CPU, of those selected."""

    def best(self, request: Request, effort: Effort) -> Best | None:
        """Propose sets and score them in one step, or None where that takes two."""
