"""`divse-search query`: answers for each query, printed as soon as they are known."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import divse
from divse.cli.arguments import AsJson, GalleryPath, TopK, usage
from divse.cli.output import Answer, print_json, print_table
from divse.cli.search_options import PlanOptions, ScoringOptions
from divse.cli.sources import SourceOptions

if TYPE_CHECKING:
    from divse.cli.answering import Answering
    from divse.cli.embedding_files import Source
    from divse.cli.query_sheet import QuerySheet
    from divse.search.gallery import Gallery


@dataclass(frozen=True)
class ShowOptions:
    """What is told of the answers, and how."""

    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Say which elements of query and hit met, and their share of the score.",
        ),
    ] = False
    contact_sheet: Annotated[
        Path | None,
        typer.Option(
            "--contact-sheet",
            metavar="OUT",
            help="Draw what is found into a picture, such as found.png.",
        ),
    ] = None
    as_json: AsJson = False

    def sheet(self, gallery: Gallery) -> QuerySheet | None:
        """The contact sheet, if there shall be one."""
        if self.contact_sheet is None:
            return None
        from divse.cli.query_sheet import QuerySheet

        return QuerySheet(self.contact_sheet, gallery)


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
    show: ShowOptions,
    stdin: Annotated[
        bool, typer.Option("--stdin", help="Read queries as JSON lines from stdin, as - does.")
    ] = False,
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
    from divse.cli.answering import Answering
    from divse.cli.query_lines import LineAnswers

    opened = divse.Gallery.open(gallery)
    sheet = show.sheet(opened)
    answering = Answering(opened, topk, plan, scoring, show.explain)
    if lines is None:
        _print(_answers(answering, source.open(opened)), show.as_json, sheet)
    else:
        answers = LineAnswers(lines, answering, source.model)
        _print(answers, True, sheet)
        answers.finish()


def _answers(answering: Answering, source: Source) -> Iterator[Answer]:
    from divse.cli.answering import BATCH
    from divse.cli.embedding_files import unit_batches

    names = source.names()
    for block in unit_batches(source, BATCH):
        yield from answering(block, [next(names) for _ in range(len(block))])


def _print(answers: Iterable[Answer], as_json: bool, sheet: QuerySheet | None) -> None:
    for found in answers:
        (print_json if as_json else print_table)(found, sys.stdout)
        if sheet is not None:
            sheet.take(found)
    if sheet is not None:
        sheet.save()
