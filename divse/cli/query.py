"""`divse-search query`: answers for each query, printed as soon as they are known."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from divse.cli.answering import BATCH, Answering
from divse.cli.arguments import AsJson, GalleryPath, TopK, usage
from divse.cli.embedding_files import Source, unit_batches
from divse.cli.output import Answer, print_json, print_table
from divse.cli.query_lines import LineAnswers
from divse.cli.query_sheet import QuerySheet
from divse.cli.search_options import PlanOptions, ScoringOptions
from divse.cli.sources import SourceOptions
from divse.search.gallery import Gallery


def query(
    gallery: GalleryPath,
    queries: Annotated[
        Path | None,
        typer.Argument(metavar="QUERIES", help="Queries as JSON lines: a file, or - for stdin."),
    ] = None,
    *,
    source: SourceOptions,
    topk: TopK = 10,
    plan: PlanOptions,
    scoring: ScoringOptions,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Say which elements of query and hit met, and their share of the score.",
        ),
    ] = False,
    contact_sheet: Annotated[
        Path | None,
        typer.Option(
            "--contact-sheet",
            metavar="OUT",
            help="Draw what is found into a picture, such as found.png.",
        ),
    ] = None,
    stdin: Annotated[
        bool, typer.Option("--stdin", help="Read queries as JSON lines from stdin, as - does.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Find the best sets of a gallery for each query.

    A gallery that was built with a model remembers it: --model may then be left out. A gallery
    with fewer sets than --topk, or fewer that pass the filter, gives what it has.

    Each query is answered as soon as possible; with --json each answer is one line.

    QUERIES are JSON lines such as {"text": "a cat"}, {"image": "a.png"} or {"embedding":
    [[0.1, ...], ...]}, with "id", "topk" and "where" if wanted. Each is answered by a JSON line, a
    bad one by {"error": ...} and exit code 1 at the end.

    [bold]Examples[/bold]

      divse-search query g --text "a red circle" --text "two stars"

      divse-search query g --text "sad face" --contact-sheet found.png --explain

      divse-search query g --image cat.png --topk 5 --where "year >= 2010"

      divse-search query g --embeddings queries.npy --plan certified --json > answers.jsonl

      tail -f wishes.jsonl | divse-search query g - | jq .hits[0].id
    """
    lines = Path("-") if stdin else queries
    if lines is None:
        source.check()
    elif source.given:
        usage("give queries as JSON lines or by options, not both")
    plan.check()
    opened = Gallery.open(gallery)
    sheet = None if contact_sheet is None else QuerySheet(contact_sheet, opened)
    answering = Answering(opened, topk, plan, scoring, explain)
    answers: Iterable[Answer]
    if lines is None:
        answers = _answers(answering, source.open(opened))
    else:
        answers = LineAnswers(lines, answering, source.model)
        as_json = True
    for found in answers:
        (print_json if as_json else print_table)(found, sys.stdout)
        if sheet is not None:
            sheet.take(found)
    if sheet is not None:
        sheet.save()
    if isinstance(answers, LineAnswers):
        answers.finish()


def _answers(answering: Answering, source: Source) -> Iterator[Answer]:
    names = source.names()
    for block in unit_batches(source, BATCH):
        yield from answering(block, [next(names) for _ in range(len(block))])
