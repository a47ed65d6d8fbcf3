"""The searcher: one gallery, many queries, and a choice of plans.

    exact      every set is scored; the answer is the answer
    certified  int8 codes rule most sets out, the rest is scored: the same answer, half the bytes
    prefilter  FAISS proposes candidates by their elements, exact scores order them
    auto       exact where that is cheap or no index is there yet, else prefilter

A named plan never falls back to another one; `explain` says what "auto" takes, and why. Building an
index takes longer than many scans, so "auto" uses one and never builds one: `Gallery.build_index`
does, or the plan "prefilter" when it is named.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from divse.search.element_index import has_faiss, index_spec
from divse.search.gallery import Gallery
from divse.search.index_files import has_index
from divse.search.prefilter import DEPTH, Prefilter, open_prefilter
from divse.search.rerank import rerank
from divse.search.scan import Scoring, exact_scan
from divse.search.stored_scan import serves, stored_scan, why_not_certified
from divse.sets import Array, EmbeddingSets
from divse.similarity.api import explain as explain_impl
from divse.similarity.table import get_similarity
from divse.similarity.topk import TopK

PLANS = ("auto", "exact", "certified", "prefilter")
EXACT_UP_TO = 100_000_000  # stored numbers: one core scans so many in some 50 ms for a query
DEEPER = 4  # how much deeper an adaptive prefilter looks at each round,
MOST_ROUNDS = 3  # and how often, until a query's results stay the same

Progress = Callable[[str, int, int], object]


class SearchResult(NamedTuple):
    """`scores` (B, topk) fp32, best first; `ids` (B, topk); `certified` (B,) bool: proven exact."""

    scores: np.ndarray
    ids: np.ndarray
    certified: np.ndarray


@dataclass(frozen=True)
class SearchPlan:
    """What a search does and why; `str()` of it is for people."""

    plan: str
    why: str
    impl: str
    sets: int
    elements: int
    certified: bool
    device: str
    index: str | None = None
    depth: int | None = None

    def __str__(self) -> str:
        """Return one line."""
        how = f"every one of {self.sets} sets is scored"
        if self.plan == "prefilter":
            depth = self.depth or f"{DEPTH} and more"
            how = f"{depth} nearest elements of {self.elements} by {self.index}, then reranked"
        return f"{self.plan} ({self.why}): {how}; {self.impl} on {self.device}"


def is_large(gallery: Gallery) -> bool:
    """Whether plan "auto" would rather look into an index than scan the gallery."""
    return gallery.manifest.elements * gallery.dim > EXACT_UP_TO


class Searcher:
    """Searches one gallery.

    Args:
        gallery: an open gallery.
        device: where scores are computed; None takes the GPU if there is one.
        progress: called as progress(what, step, total) during long work.
    """

    def __init__(
        self,
        gallery: Gallery | str | Path,
        *,
        device: str | torch.device | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.gallery = gallery if isinstance(gallery, Gallery) else Gallery.open(gallery)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._progress = progress
        self._prefilter: Prefilter | None = None

    def search(
        self,
        queries: EmbeddingSets | Array,
        topk: int = 10,
        plan: str = "auto",
        depth: int | None = None,
        *,
        similarity: str = "smooth_chamfer",
        alpha: float = 16.0,
        log_mean: bool = False,
        impl: str = "auto",
        **parameters: Any,
    ) -> SearchResult:
        """Find the `topk` best sets for each of the queries (B, K, D).

        `plan` is one of "auto", "exact", "certified" and "prefilter"; `depth` is the number of
        nearest elements that the prefilter looks up for each query element. `similarity`, `alpha`,
        `log_mean`, `impl` and `parameters` as in `divse.score`. Equal scores come in the order of
        position.
        """
        scoring = Scoring(similarity, alpha, log_mean, impl, parameters)
        found, certified = self._find(queries, topk, plan, depth, scoring)
        ids = self.gallery.take_ids(np.asarray(found.ids))
        return SearchResult(np.asarray(found.scores), ids, np.full(len(ids), certified))

    def search_positions(
        self,
        queries: EmbeddingSets | Array,
        topk: int = 10,
        plan: str = "auto",
        depth: int | None = None,
        scoring: Scoring | None = None,
    ) -> TopK:
        """Search like `search`, but return positions in the gallery (B, topk) in place of ids."""
        return self._find(queries, topk, plan, depth, scoring or Scoring())[0]

    def explain(
        self,
        plan: str = "auto",
        depth: int | None = None,
        *,
        similarity: str = "smooth_chamfer",
        impl: str = "auto",
    ) -> SearchPlan:
        """Say what `search` does with these arguments, without searching."""
        chosen, why = self._choose(plan, depth)
        elements = self.gallery.manifest.elements
        exact = chosen != "prefilter"
        kind = getattr(torch, self.gallery.manifest.dtype)
        shape = (1, max(1, self.gallery.k), self.gallery.dim)
        one = EmbeddingSets(torch.ones(shape, dtype=kind, device=self.device))
        return SearchPlan(
            plan=chosen,
            why=why,
            impl=str(explain_impl(one, one, similarity, impl=impl)),
            sets=len(self.gallery),
            elements=elements,
            certified=exact,
            device=str(self.device),
            index=None if exact else self._index_spec(),
            depth=None if exact else depth,
        )

    def _find(
        self,
        queries: EmbeddingSets | Array,
        topk: int,
        plan: str,
        depth: int | None,
        scoring: Scoring,
    ) -> tuple[TopK, bool]:
        """The best positions of each query, and whether they are proven to be the best."""
        sets = queries if isinstance(queries, EmbeddingSets) else EmbeddingSets.of(queries)
        self._check(sets, topk, depth)
        get_similarity(scoring.similarity)
        chosen, _ = self._choose(plan, depth)
        if chosen == "prefilter":
            return self._prefiltered(sets.numpy(), topk, depth, scoring), False
        step = self._tell("scan", len(self.gallery))
        asked = sets.torch(self.device)
        if chosen == "certified":
            self._check_certified(scoring.similarity)
            found = stored_scan(asked, self.gallery, topk, scoring, by_codes=True, progress=step)
        elif serves(asked, scoring):
            found = stored_scan(asked, self.gallery, topk, scoring, progress=step)
        else:
            found = exact_scan(asked, self.gallery.blocks(), topk, scoring, step)
        return TopK(found.scores.cpu().numpy(), found.positions.cpu().numpy()), True

    def _check_certified(self, similarity: str) -> None:
        reason = why_not_certified(self.gallery, similarity)
        if self.device.type != "cpu":
            reason = f"it runs on the CPU and the searcher on {self.device}"
        if reason is not None:
            raise ValueError(f"plan='certified' cannot serve this search: {reason}")

    def _prefiltered(
        self, queries: EmbeddingSets, topk: int, depth: int | None, scoring: Scoring
    ) -> TopK:
        """Rerank candidates; without a given depth, look deeper until the results stay the same."""
        if self._prefilter is None:
            self._prefilter = open_prefilter(self.gallery, self._tell("index", len(self.gallery)))
        rounds = MOST_ROUNDS if depth is None else 1
        depth = depth or DEPTH
        best = np.full((len(queries), topk), -1, dtype=np.int64)
        scores = np.full((len(queries), topk), -np.inf, dtype=np.float32)
        on_device = queries.torch(self.device)
        waiting = np.arange(len(queries))
        for _ in range(rounds):
            changed = []
            proposed = self._prefilter.candidates(queries[waiting], depth, least=topk)
            for row, candidates in zip(waiting, proposed, strict=True):
                hits = rerank(on_device[row], self.gallery, candidates, topk, scoring)
                positions = hits.positions[0].cpu().numpy()
                if (positions != best[row]).any():
                    changed.append(row)
                best[row], scores[row] = positions, hits.scores[0].cpu().numpy()
            waiting = np.array(changed, dtype=np.int64)
            if not changed or depth >= self.gallery.manifest.elements:
                break
            depth *= DEEPER
        return TopK(scores, best)

    def _choose(self, plan: str, depth: int | None) -> tuple[str, str]:
        """The plan to take and the reason."""
        if plan not in PLANS:
            raise ValueError(f"plan: got {plan!r}, expected one of {', '.join(PLANS)}")
        if plan in ("exact", "certified") and depth is not None:
            raise ValueError("depth is of plan='prefilter': leave it, or change the plan")
        if plan != "auto":
            return plan, "as asked"
        if depth is not None:
            return "prefilter", "a depth is given"
        size = self.gallery.manifest.elements * self.gallery.dim
        if not is_large(self.gallery):
            return "exact", f"{size:,} numbers are few"
        if not has_faiss():
            return "exact", "faiss is not installed"
        if self._prefilter is None and not has_index(self.gallery):
            return "exact", "no index is stored in the gallery"
        return "prefilter", f"{size:,} numbers are many"

    def _index_spec(self) -> str:
        stored = self.gallery.manifest.index
        return index_spec(self.gallery.manifest.elements) if stored is None else stored.spec

    def _check(self, queries: EmbeddingSets, topk: int, depth: int | None) -> None:
        if not len(queries):
            raise ValueError("there are no queries: got 0 sets")
        if queries.dim != self.gallery.dim:
            raise ValueError(
                f"queries have D={queries.dim}, the gallery has D={self.gallery.dim}: "
                "both must come from the same model"
            )
        if isinstance(topk, bool) or not isinstance(topk, int | np.integer):
            raise TypeError(f"topk: got {type(topk).__name__}, expected an int")
        if not len(self.gallery):
            raise ValueError("the gallery is empty: every set was removed")
        if not 1 <= topk <= len(self.gallery):
            raise ValueError(
                f"topk: got {topk}, expected 1 to {len(self.gallery)}, the gallery's size"
            )
        if depth is not None and depth < 1:
            raise ValueError(f"depth: got {depth}, expected at least 1")

    def _tell(self, what: str, total: int) -> Callable[[int], object] | None:
        if self._progress is None:
            return None
        progress = self._progress
        return lambda step: progress(what, step, total)
