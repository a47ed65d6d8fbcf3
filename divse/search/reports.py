"""What a search returns, what it would do, and what it did."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from divse.search.index_spec import is_sketch


class SearchResult(NamedTuple):
    """`scores` (B, topk) fp32, best first; `ids` (B, topk); `certified` (B,) bool: proven exact."""

    scores: np.ndarray
    ids: np.ndarray
    certified: np.ndarray


@dataclass(frozen=True)
class SearchPlan:
    """What a search does and why; `str()` of it is for people.

    `sets` are those of the gallery and `survivors` those that the filter leaves, `elements` the
    elements of all sets. `certified`: every answer will be proven exact (a prefilter may still
    prove some). `note` says why a stored measurement is not used.
    """

    plan: str
    why: str
    impl: str
    sets: int
    elements: int
    certified: bool
    device: str
    index: str | None = None
    depth: int | None = None
    survivors: int | None = None
    probe: int | None = None
    note: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """Return one line."""
        left = "" if self.survivors is None else f"{self.survivors} of "
        how = f"every one of {left}{self.sets} sets is scored"
        if self.plan == "certified":
            how = f"int8 codes of {left}{self.sets} sets are read, what they leave is scored"
        if self.plan == "prefilter" and self.index is not None:
            if is_sketch(self.index):
                cells = f" in {self.probe} cells" if self.probe else ""
                how = f"{self.depth or 'the best'} of {self.sets} sets by {self.index}{cells}"
            else:
                depth = self.depth or "more and more"
                how = f"{depth} nearest elements of {self.elements} by {self.index}"
            how += ", then reranked"
            how += f" ({self.survivors} sets pass the filter)" if left else ""
        note = f" [{self.note}]" if self.note else ""
        return f"{self.plan} ({self.why}): {how}; {self.impl} on {self.device}{note}"


@dataclass
class Work:
    """What a search has done so far; the plans fill it in.

    `candidates` are sets scored exactly, over all queries; `bytes_read` of the gallery and, about,
    of the index, for all queries together; `seconds` by stage.
    """

    impl: str = ""
    candidates: int = 0
    bytes_read: int = 0
    depth: int | None = None
    probe: int | None = None
    rounds: int = 1
    seconds: dict[str, float] = field(default_factory=dict)

    def timed(self, stage: str) -> Timed:
        """Add the time inside to a stage: filter, index, prefilter, scan or rerank."""
        return Timed(self.seconds, stage)


class Timed:
    """A context that adds the seconds inside to those of a stage."""

    def __init__(self, seconds: dict[str, float], stage: str) -> None:
        self._seconds, self._stage = seconds, stage

    def __enter__(self) -> None:
        self._started = perf_counter()

    def __exit__(self, *_: object) -> None:
        spent = perf_counter() - self._started
        self._seconds[self._stage] = self._seconds.get(self._stage, 0.0) + spent


@dataclass(frozen=True)
class SearchReport:
    """What the last search of a `Searcher` did.

    Args:
        plan, why: what was done and the reason.
        impl, device: who computed the scores, and where.
        queries: searched together.
        sets: of the gallery.
        survivors: sets that the filter left, all of them without one.
        candidates: sets scored exactly, mean per query.
        bytes_read: of embeddings and codes, and about those of the index, for all queries.
        depth, probe: the sets that sketches proposed and the cells looked into, or the nearest
            elements looked up for each query element and FAISS's clusters, at the last round of the
            prefilter.
        rounds: of the prefilter, each deeper than the one before.
        certified: share of the queries whose answer is proven to be the exact one.
        seconds: by stage: filter, index, prefilter, scan, rerank (within prefilter where one call
            of the kernel does both).
        note: why a stored measurement was not used.
    """

    plan: str
    why: str
    impl: str
    device: str
    queries: int
    sets: int
    survivors: int
    candidates: float
    bytes_read: int
    depth: int | None
    probe: int | None
    rounds: int
    certified: float
    seconds: dict[str, float]
    note: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """Return one line."""
        stages = ", ".join(f"{name} {1e3 * spent:.1f} ms" for name, spent in self.seconds.items())
        depth = f", depth {self.depth} after {self.rounds} rounds" if self.depth else ""
        depth += f", probe {self.probe}" if self.probe and self.probe > 1 else ""
        note = f" [{self.note}]" if self.note else ""
        return (
            f"{self.plan} ({self.why}) by {self.impl} on {self.device}: {self.queries} queries, "
            f"{self.survivors} of {self.sets} sets pass, {self.candidates:.1f} scored for each "
            f"query{depth}, {self.bytes_read / 1e6:.1f} MB read, {self.certified:.0%} certified; "
            f"{stages}{note}"
        )
