"""Answers of `divse-search query`: sets go in, what is found comes out."""

from __future__ import annotations

from typing import Any

import numpy as np
import typer

from divse.cli.output import Answer, answer
from divse.cli.progress import SearchBars
from divse.cli.search_options import PlanOptions, ScoringOptions
from divse.search.explanation import explain_hits
from divse.search.gallery import Gallery
from divse.search.index_files import has_index
from divse.search.prefilter import STORED_FROM
from divse.search.reports import SearchReport
from divse.search.searcher import Searcher
from divse.sets import EmbeddingSets

BATCH = 256  # queries searched together: one pass over the gallery serves them all
PAIRS = 16  # pairs of elements that an explanation names, of K L


class Answering:
    """One gallery and one way of searching it.

    What would fail for every query, such as a plan that cannot serve, fails at once.
    """

    def __init__(
        self,
        gallery: Gallery,
        topk: int,
        plan: PlanOptions,
        scoring: ScoringOptions,
        explain: bool = False,
    ) -> None:
        if not len(gallery):
            raise ValueError(f"{gallery.path} is empty: every set was removed")
        self.gallery, self.topk, self.explain = gallery, topk, explain
        self._bars = SearchBars()
        self._searcher = Searcher(gallery, progress=self._bars)
        self._plan, self._scoring = plan, scoring.scoring(gallery)
        self._allowed = plan.allowed(gallery)
        chosen = self._searcher.explain(
            str(plan.plan),
            plan.depth,
            probe=plan.probe,
            where=plan.where,
            allowed=self._allowed,
            topk=min(topk, len(gallery)),
            similarity=self._scoring.similarity,
            alpha=self._scoring.alpha,
            log_mean=self._scoring.log_mean,
            impl=self._scoring.impl,
        )
        if chosen.index is not None:
            self._announce_index()

    def __call__(
        self,
        sets: EmbeddingSets,
        names: list[dict[str, Any]],
        topk: int | None = None,
        where: str | None = None,
    ) -> list[Answer]:
        """Search for all queries together and return their answers, in order.

        `topk` and `where` take the place of those that serve all queries.
        """
        count = min(topk or self.topk, len(self.gallery))  # a short gallery gives what it has
        asked = self._plan.asked(count, self._scoring)
        found = self._searcher.find(sets, asked, where or self._plan.where, self._allowed)
        self._bars.close()
        report = self._searcher.last
        assert report is not None, "there was a search"
        answers = []
        for name, scores, positions, proven in zip(names, *found, strict=True):
            rows = self.gallery.take_rows(positions)
            answers.append(answer(name, report.plan, bool(proven), scores.tolist(), rows))
        if self.explain:
            self._add_explanations(answers, sets, found.positions, report)
        return answers

    def _announce_index(self) -> None:
        """Say so if the first search has to build a large index, which takes its time."""
        large = self.gallery.manifest.elements >= STORED_FROM
        if large and not has_index(self.gallery):
            where = self.gallery.path
            typer.echo(
                f"divse-search: {where} has no index: it is built and stored there first "
                f"(as `divse-search index {where}` does)",
                err=True,
            )

    def _add_explanations(
        self,
        answers: list[Answer],
        sets: EmbeddingSets,
        positions: np.ndarray,
        report: SearchReport,
    ) -> None:
        keywords = self._scoring.keywords()
        explained = explain_hits(sets, self.gallery, positions, **keywords)
        for found, hits in zip(answers, explained, strict=True):
            found["search"] = report.to_dict()
            for hit, why in zip(found["hits"], hits, strict=True):
                hit["explain"] = why.to_dict(PAIRS)
