"""`divse-search tune` and `eval`: what plans cost and what they find, against the exact answer."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import divse
from divse.cli.arguments import AsJson, GalleryPath, TopK
from divse.cli.output import print_info, print_json, tell
from divse.cli.progress import SearchBars
from divse.cli.search_options import PlanOptions, ScoringOptions
from divse.cli.sources import SourceOptions

if TYPE_CHECKING:
    from divse.search.gallery import Gallery
    from divse.search.trial import Trial


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

    Queries are sets of the gallery, moved by noise, and as many that are mixed of the elements of
    different sets and moved farther: the mean recall of each kind must reach it with 95 %
    confidence. Better give a sample of what will be asked, of a hundred queries or more.

    [bold]Examples[/bold]

      divse-search tune g

      divse-search tune g --recall 0.95 --embeddings sample.npy

      divse-search tune g --texts wishes.txt --topk 20
    """
    from divse.search import tune as tune_gallery

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
        int, typer.Option(min=1, help="Sets to draw from the gallery if no queries are given.")
    ] = 64,
    topk: TopK = 10,
    plan: PlanOptions,
    scoring: ScoringOptions,
    as_json: AsJson = False,
) -> None:
    """Measure a plan: its recall against the exact answer, and its time for a query.

    Without queries, sets are drawn from the gallery: each gives one that is moved by noise, and one
    that is mixed of the elements of several and moved farther; sets that queries are made of do not
    count as found. The recall is that of the kind that has less.

    [bold]Examples[/bold]

      divse-search eval g --plan prefilter --depth 100

      divse-search eval g --plan certified --embeddings queries.npy --json

      divse-search eval g --where "year >= 2010" --topk 20
    """
    from divse.search.trial import Filters, Sample, Trial, drawn

    plan.check()
    opened = _with_sets(gallery)
    queries = _queries(source, opened)
    samples = drawn(opened, sample) if queries is None else [Sample("given", queries)]
    searcher = divse.Searcher(opened, progress=SearchBars())
    filters = Filters(plan.where, plan.allowed(opened))
    trial = Trial(searcher, samples, scoring.scoring(opened), topk, filters)
    (print_json if as_json else print_info)(_compared(trial, plan), sys.stdout)


def _compared(trial: Trial, plan: PlanOptions) -> dict[str, Any]:
    """What a plan finds and costs, as it is printed."""
    setting = str(plan.plan), plan.depth, plan.probe
    found = trial.search(*setting)
    reports = found.reports
    exact, spent = trial.milliseconds("exact"), trial.milliseconds(*setting)
    return {
        "plan": reports[0].plan,
        "why": reports[0].why,
        "impl": reports[0].impl,
        "queries": trial.queries,
        "sampled": trial.sampled,
        "topk": trial.topk,
        "recall": found.recall,
        "recalls": {kind: round(recall, 6) for kind, recall in found.recalls.items()},
        "lowest_recall": float(min(share.min() for share in found.shares.values())),
        "certified": statistics.mean(report.certified for report in reports),
        "candidates": statistics.mean(report.candidates for report in reports),
        "milliseconds": spent,
        "exact_milliseconds": exact,
        "speedup": exact / spent,
    }


def _with_sets(path: Path) -> Gallery:
    gallery = divse.Gallery.open(path)
    if not len(gallery):
        raise ValueError(f"{gallery.path} is empty: every set was removed")
    return gallery


def _queries(source: SourceOptions, gallery: Gallery) -> divse.EmbeddingSets | None:
    """The queries that are given, all of them together, or None."""
    if not source.given:
        return None
    from divse.cli.answering import BATCH
    from divse.cli.embedding_files import unit_batches

    source.check()
    return divse.EmbeddingSets.cat(unit_batches(source.open(gallery), BATCH)).numpy()
