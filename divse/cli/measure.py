"""`divse-search tune` and `eval`: what plans cost and what they find, against the exact answer."""

from __future__ import annotations

import statistics
import sys
from time import perf_counter
from typing import Annotated, Any

import numpy as np
import typer

from divse.cli.answering import BATCH
from divse.cli.arguments import AsJson, GalleryPath, Plan, TopK
from divse.cli.embedding_files import unit_batches
from divse.cli.output import print_info, print_json, tell
from divse.cli.progress import SearchBars, bar
from divse.cli.search_options import PlanOptions, ScoringOptions
from divse.cli.sources import SourceOptions
from divse.search.gallery import Gallery
from divse.search.plans import Asked
from divse.search.scan import Scoring
from divse.search.searcher import Searcher
from divse.search.tuning import held_out
from divse.search.tuning import tune as tune_gallery
from divse.sets import EmbeddingSets

ROUNDING = 1e-6  # scores so near to the k-th best count as found: they may change places
TIMED = 16  # queries searched alone for the time


def tune(
    gallery: GalleryPath,
    *,
    source: SourceOptions,
    recall: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the exact top results to reach.")
    ] = 0.99,
    topk: TopK = 10,
    scoring: ScoringOptions,
    as_json: AsJson = False,
) -> None:
    """Measure plans and settings, and remember the cheapest that reaches a recall.

    --plan auto uses it from then on, on this machine, until the gallery changes.

    Queries are sets of the gallery, moved by noise; better give a sample of what will be asked.

    [bold]Examples[/bold]

      divse-search tune g

      divse-search tune g --recall 0.95 --embeddings sample.npy

      divse-search tune g --texts wishes.txt --topk 20
    """
    opened = _with_sets(gallery)
    asked = scoring.scoring(opened)
    bars = SearchBars()
    tuned = tune_gallery(
        opened,
        recall=recall,
        topk=min(topk, len(opened)),
        queries=_queries(source, opened),
        impl=asked.impl,
        progress=bars,
        **asked.keywords(),
    )
    bars.close()
    tell(as_json, str(tuned), **tuned.to_dict())


def evaluate(
    gallery: GalleryPath,
    *,
    source: SourceOptions,
    sample: Annotated[
        int, typer.Option(min=1, help="Queries to draw from the gallery if none are given.")
    ] = 64,
    topk: TopK = 10,
    plan: PlanOptions,
    scoring: ScoringOptions,
    as_json: AsJson = False,
) -> None:
    """Measure a plan: its recall against the exact answer, and its time for a query.

    Queries that are drawn from the gallery are moved by noise, and their own sets not counted.

    [bold]Examples[/bold]

      divse-search eval g --plan prefilter --depth 100

      divse-search eval g --plan certified --embeddings queries.npy --json

      divse-search eval g --where "year >= 2010" --topk 20
    """
    plan.check()
    opened = _with_sets(gallery)
    queries, own = _queries(source, opened), None
    if queries is None:
        queries, own = held_out(opened, sample)
    searcher = Searcher(opened, progress=SearchBars())
    trial = _Trial(searcher, queries, own, plan, scoring.scoring(opened), topk)
    found = trial.compare()
    (print_json if as_json else print_info)(found, sys.stdout)


def _with_sets(path: Any) -> Gallery:
    gallery = Gallery.open(path)
    if not len(gallery):
        raise ValueError(f"{gallery.path} is empty: every set was removed")
    return gallery


def _queries(source: SourceOptions, gallery: Gallery) -> EmbeddingSets | None:
    """The queries that are given, all of them together, or None."""
    if not source.given:
        return None
    source.check()
    return EmbeddingSets.cat(unit_batches(source.open(gallery), BATCH)).numpy()


class _Trial:
    """Queries, searched by a plan and exactly; `own` (B,) are positions that do not count."""

    def __init__(
        self,
        searcher: Searcher,
        queries: EmbeddingSets,
        own: np.ndarray | None,
        plan: PlanOptions,
        scoring: Scoring,
        topk: int,
    ) -> None:
        self._searcher, self._queries, self._own = searcher, queries, own
        count = min(topk + (own is not None), len(searcher.gallery))
        self._topk = min(topk, count)
        self._filters = (plan.where, plan.allowed(searcher.gallery))
        self._asked = plan.asked(count, scoring)
        self._exact = Asked(str(Plan.exact), None, None, count, scoring)

    def compare(self) -> dict[str, Any]:
        """Search with both and return the figures."""
        truth, _ = self._scores(self._exact)
        if not truth.shape[1]:
            raise ValueError("no set passes the filter: there is nothing to find")
        scores, certified = self._scores(self._asked)
        report = self._searcher.last
        assert report is not None, "there was a search"
        right = (scores >= truth[:, -1:] - ROUNDING).mean(1)
        exact, spent = self._seconds(self._exact), self._seconds(self._asked)
        return {
            "plan": report.plan,
            "why": report.why,
            "impl": report.impl,
            "queries": len(self._queries),
            "sampled": self._own is not None,
            "topk": truth.shape[1],
            "recall": float(right.mean()),
            "lowest_recall": float(right.min()),
            "certified": float(certified.mean()),
            "candidates": report.candidates,
            "milliseconds": 1e3 * spent,
            "exact_milliseconds": 1e3 * exact,
            "speedup": exact / spent,
        }

    def _scores(self, asked: Asked) -> tuple[np.ndarray, np.ndarray]:
        """Scores (B, topk) of what is found, best first, and what is proven (B,)."""
        found = self._searcher.find(self._queries, asked, *self._filters)
        scores = found.scores
        if self._own is not None:
            scores = np.where(found.positions == self._own[:, None], -np.inf, scores)
        return -np.sort(-scores, axis=1)[:, : self._topk], found.certified

    def _seconds(self, asked: Asked) -> float:
        """Median seconds of a query on its own."""
        spent = []
        with bar("eval", min(TIMED, len(self._queries)), " queries") as step:
            for row in range(min(TIMED, len(self._queries))):
                started = perf_counter()
                self._searcher.find(self._queries[row], asked, *self._filters)
                spent.append(perf_counter() - started)
                step(1)
        return statistics.median(spent)
