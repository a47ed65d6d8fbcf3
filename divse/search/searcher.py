"""The searcher: one gallery, many queries, and a choice of plans.

    exact      every set that passes the filter is scored; the answer is the answer
    certified  int8 codes rule most sets out, the rest is scored: the same answer, half the bytes
    prefilter  an index proposes candidates, exact scores order them
    auto       a scan where that is cheap or no index is there yet, else prefilter; or what `tune`
               found to be cheapest

A named plan never falls back to another one; `explain` says what "auto" takes, and why. Building an
index takes longer than many scans, so "auto" uses one and never builds one: `Gallery.build_index`
does, or the plan "prefilter" when it is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch

from divse.search.adaptive import run_prefilter
from divse.search.backend import Backend
from divse.search.filters import Selection, select
from divse.search.gallery import Gallery
from divse.search.plans import Asked, Choice, Facts, check_asked, choose, is_large, topk_of
from divse.search.prefilter import open_prefilter
from divse.search.proposal import PrefilterIndex
from divse.search.reports import SearchPlan, SearchReport, SearchResult, Work
from divse.search.request import Found, Request, none_left
from divse.search.scan import Scoring
from divse.search.scans import run_certified, run_exact
from divse.search.tuned_file import TunedFile
from divse.sets import Array, EmbeddingSets
from divse.similarity.inputs import read_parameters
from divse.similarity.table import get_similarity
from divse.similarity.topk import TopK

__all__ = ["SearchPlan", "SearchReport", "SearchResult", "Searcher", "is_large"]

Progress = Callable[[str, int, int], object]
Ids = Iterable[Any]


class Searcher:
    """Searches one gallery.

    `last` is the report of the last search, None before the first. Threads may share a searcher;
    `last` is then of whichever search ended last.

    Args:
        gallery: an open gallery.
        device: where scores are computed; None takes the GPU if there is one.
        resident: whether the gallery is copied to the GPU's memory at the first search; None does
            so where it takes up to half of what is free there. Otherwise it streams at each search.
        progress: called as progress(what, step, total) during long work.
    """

    def __init__(
        self,
        gallery: Gallery | str | Path,
        *,
        device: str | torch.device | None = None,
        resident: bool | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.gallery = gallery if isinstance(gallery, Gallery) else Gallery.open(gallery)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.last: SearchReport | None = None
        self._progress = progress
        self._backend = Backend(self.gallery, self.device, resident)
        self._tuned = TunedFile(self.gallery, self.device)
        self._index: PrefilterIndex | None = None
        self._filter: tuple[str, Selection] | None = None  # of the last condition
        self._loading = Lock()  # of the index and of a GPU's copy, once for all threads

    def search(
        self,
        queries: EmbeddingSets | Array,
        topk: int | None = None,
        plan: str = "auto",
        depth: int | None = None,
        *,
        where: str | None = None,
        allowed: Ids | None = None,
        probe: int | None = None,
        similarity: str = "smooth_chamfer",
        alpha: float = 16.0,
        log_mean: bool = False,
        impl: str = "auto",
        **parameters: Any,
    ) -> SearchResult:
        """Find the `topk` best sets for each of the queries (B, K, D); None: 10, or all of fewer.

        `plan` is one of "auto", "exact", "certified" and "prefilter"; `depth` is the number of
        sets that the prefilter's sketches propose, or of elements that its FAISS index looks up for
        each query element, `probe` the number of cells, or of FAISS's clusters, that are looked
        into. `where` is a
        condition over the gallery's columns and `id`, such as "year >= 2010 and label in ('cat',
        'dog')" (needs duckdb), `allowed` an array of ids: only sets that pass both are found, and
        results have min(topk, sets that pass) columns. `similarity`, `alpha`, `log_mean`, `impl`
        and `parameters` as in `divse.score`.
        Equal scores come in the order of position.
        """
        scoring = Scoring(similarity, alpha, log_mean, impl, parameters)
        asked = Asked(plan, depth, probe, topk_of(topk, len(self.gallery)), scoring)
        found = self.find(queries, asked, where, allowed)
        return SearchResult(found.scores, self.gallery.take_ids(found.positions), found.certified)

    def search_positions(
        self,
        queries: EmbeddingSets | Array,
        topk: int | None = None,
        plan: str = "auto",
        depth: int | None = None,
        scoring: Scoring | None = None,
        *,
        where: str | None = None,
        allowed: Ids | None = None,
        probe: int | None = None,
    ) -> TopK:
        """Search like `search`, but return positions in the gallery (B, topk) in place of ids."""
        scoring = scoring or Scoring()
        asked = Asked(plan, depth, probe, topk_of(topk, len(self.gallery)), scoring)
        found = self.find(queries, asked, where, allowed)
        return TopK(found.scores, found.positions)

    def explain(
        self,
        plan: str = "auto",
        depth: int | None = None,
        *,
        where: str | None = None,
        allowed: Ids | None = None,
        probe: int | None = None,
        topk: int | None = None,
        similarity: str = "smooth_chamfer",
        alpha: float = 16.0,
        log_mean: bool = False,
        impl: str = "auto",
        **parameters: Any,
    ) -> SearchPlan:
        """Say what `search` does with these arguments, without searching; filters are applied."""
        scoring = Scoring(similarity, alpha, log_mean, impl, parameters)
        asked = Asked(plan, depth, probe, topk_of(topk, len(self.gallery)), scoring)
        self._check(asked)
        selection = self._select(where, allowed)
        facts = self._facts(selection, asked)
        choice = choose(asked, facts)
        scans = choice.plan != "prefilter" or choice.brute
        return SearchPlan(
            plan=choice.plan,
            why=choice.why,
            impl=self._backend.name(scoring),
            sets=len(self.gallery),
            elements=self.gallery.manifest.elements,
            certified=scans,
            device=str(self.device),
            index=None if scans else facts.searched,
            depth=None if scans else choice.depth,
            survivors=None if selection is None else selection.count,
            probe=None if scans else choice.probe,
            note=choice.note,
        )

    def find(
        self,
        queries: EmbeddingSets | Array,
        asked: Asked,
        where: str | None = None,
        allowed: Ids | None = None,
    ) -> Found:
        """Search as `asked`: scores, positions and proofs (`Found`); `last` notes what was done."""
        sets = queries if isinstance(queries, EmbeddingSets) else EmbeddingSets.of(queries)
        self._check_queries(sets)
        self._check(asked)
        if asked.scoring.impl != "reference":
            sets = _in_single_precision(sets)
        work = Work(impl=self._backend.name(asked.scoring))
        with work.timed("filter"):
            selection = self._select(where, allowed)
        facts = self._facts(selection, asked)
        choice = choose(asked, facts)
        with work.timed("load"), self._loading:
            told = self._tell("load", len(self.gallery))
            resident = self._backend.resident(choice.plan, asked.scoring, told)
        request = Request(
            self.gallery,
            sets.numpy() if self.device.type == "cpu" else sets,
            min(asked.topk, facts.survivors),
            asked.scoring,
            selection,
            self.device,
            resident,
            self._tell,
            work,
        )
        found = self._run(request, choice) if facts.survivors else none_left(sets)
        self._report(request, choice, found)
        return found

    @property
    def index(self) -> PrefilterIndex | None:
        """The prefilter's index, None before it is needed."""
        return self._index

    def _run(self, request: Request, choice: Choice) -> Found:
        if choice.plan == "certified":
            return run_certified(request)
        if choice.plan == "exact" or choice.brute:
            return run_exact(request)
        with request.work.timed("index"), self._loading:
            if self._index is None:
                told = self._tell("index", len(self.gallery))
                self._index = open_prefilter(self.gallery, told)
        return run_prefilter(request, self._index, choice.depth, choice.probe)

    def _facts(self, selection: Selection | None, asked: Asked) -> Facts:
        """What the choice of a plan depends on beside the arguments."""
        index = self._index or self.gallery.manifest.index
        return Facts(
            self.gallery,
            len(self.gallery) if selection is None else selection.count,
            self.device.type,
            self._backend.why_not_certified(asked.scoring),
            None if index is None else index.spec,
            *self._tuned.setting(asked),
        )

    def _select(self, where: str | None, allowed: Ids | None) -> Selection | None:
        """What the filters leave; the last condition is remembered, as batches repeat it."""
        if allowed is not None or where is None:
            return select(self.gallery, where, allowed)
        last = self._filter  # read once: another thread may search for something else
        if last is not None and last[0] == where:
            return last[1]
        selection = select(self.gallery, where)
        assert selection is not None
        self._filter = (where, selection)
        return selection

    def _report(self, request: Request, choice: Choice, found: Found) -> None:
        work, queries = request.work, len(request.queries)
        self.last = SearchReport(
            plan=choice.plan,
            why=choice.why,
            impl=work.impl,
            device=str(self.device),
            queries=queries,
            sets=len(self.gallery),
            survivors=request.survivors,
            candidates=work.candidates / queries,
            bytes_read=work.bytes_read,
            depth=work.depth,
            probe=work.probe,
            rounds=work.rounds,
            certified=np.count_nonzero(found.certified) / queries,
            seconds=dict(work.seconds),
            note=choice.note,
        )

    def _check_queries(self, queries: EmbeddingSets) -> None:
        if not len(queries):
            raise ValueError("there are no queries: got 0 sets")
        if queries.dim != self.gallery.dim:
            raise ValueError(
                f"queries have D={queries.dim}, the gallery has D={self.gallery.dim}: "
                "both must come from the same model"
            )

    def _check(self, asked: Asked) -> None:
        """Refuse what no plan can serve, whether it is searched for or explained."""
        topk, scoring = asked.topk, asked.scoring
        if isinstance(topk, bool) or not isinstance(topk, int | np.integer):
            raise TypeError(f"topk: got {type(topk).__name__}, expected an int")
        if not len(self.gallery):
            raise ValueError("the gallery is empty: every set was removed")
        if not 1 <= topk <= len(self.gallery):
            raise ValueError(
                f"topk: got {topk}, expected 1 to {len(self.gallery)}, the gallery's size"
            )
        check_asked(asked)
        similarity = get_similarity(scoring.similarity)
        given = read_parameters(similarity, scoring.alpha, scoring.log_mean, scoring.parameters)
        if scoring.parameters:  # the specification knows which values they may have
            similarity.reduce(torch.zeros(1, 1, 1), **given)

    def _tell(self, what: str, total: int) -> Callable[[int], object] | None:
        if self._progress is None:
            return None
        progress = self._progress
        return lambda step: progress(what, step, total)


def _in_single_precision(queries: EmbeddingSets) -> EmbeddingSets:
    """float64 as float32: no gallery has more, and the kernels compute in it."""
    values = queries.values
    if values.dtype not in (np.float64, torch.float64):
        return queries
    single = values.float() if isinstance(values, torch.Tensor) else values.astype(np.float32)
    return EmbeddingSets(single, queries.lengths)
