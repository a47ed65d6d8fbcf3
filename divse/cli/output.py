"""Answers for people (a table for each query) and for programs (one JSON line for each query)."""

from __future__ import annotations

import json
import math
import sys
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from divse.search.gallery import Gallery

Answer = dict[str, Any]  # query, plan, certified, hits: [{rank, id, score, and the columns}]
OWN = ("rank", "score", "explain")
PAIRS_IN_TABLE = 3


def answer(
    query: dict[str, Any], plan: str, certified: bool, scores: list[float], rows: list[Answer]
) -> Answer:
    """Return one query's answer, as it is printed in JSON."""
    hits = [
        {"rank": rank, "id": row.pop("id"), "score": round(score, 6), **_columns(row)}
        for rank, (score, row) in enumerate(zip(scores, rows, strict=True), 1)
    ]
    return {"query": query, "plan": plan, "certified": certified, "hits": hits}


def _columns(row: Answer) -> Answer:
    """Name a user's column "score" or "rank" otherwise: it must not hide the result's own.

    Numbers that are none become null: JSON has no NaN.
    """
    plain = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
    return {f"column {name}" if name in OWN else name: value for name, value in plain.items()}


def print_json(found: Answer, stream: TextIO) -> None:
    """Print an answer as one line."""
    print(json.dumps(found, ensure_ascii=False, default=str), file=stream, flush=True)


def tell(as_json: bool, text: str, **figures: Any) -> None:
    """Print what a command did: a sentence, or its figures as JSON."""
    if as_json:
        print_json(figures, sys.stdout)
    else:
        print(text, flush=True)


def size_of(gallery: Gallery) -> dict[str, Any]:
    """Return what every command that made or changed a gallery says of it in JSON."""
    stored = gallery.manifest.index
    return {
        "gallery": str(gallery.path),
        "sets": len(gallery),
        "bytes": gallery.nbytes,
        "generation": gallery.manifest.generation,
        "index": None if stored is None else stored.spec,
    }


def print_table(found: Answer, stream: TextIO) -> None:
    """Print an answer as a table: rank, score, id and the columns of the gallery."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from divse.search.reports import SearchReport

    console = Console(file=stream)
    proof = f"{found['plan']}, {'proven exact' if found['certified'] else 'not certified'}"
    proof = "exact" if found["plan"] == "exact" else proof
    title = Text(f"{label(found['query'])}  ", style="bold")
    console.print(title.append(f"({proof})", style="dim"), highlight=False)
    hits = found["hits"]
    if not hits:
        console.print("no set passes the filter\n")
        return
    columns = [name for name in hits[0] if name not in OWN]
    explained = "explain" in hits[0]
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("rank", "score"):
        table.add_column(name, justify="right", no_wrap=True)
    if explained:
        table.add_column("pairs that met", no_wrap=True)
    for name in columns:
        table.add_column(name, overflow="ellipsis", no_wrap=name == "id")
    for hit in hits:
        cells: list[RenderableType] = [str(hit["rank"]), f"{hit['score']:.4f}"]
        cells += [_pairs(hit["explain"])] if explained else []
        table.add_row(*cells, *(Text(str(hit[name])) for name in columns))
    console.print(table)
    if "search" in found:
        console.print(Text(str(SearchReport(**found["search"])), style="dim"))
    console.print()


def _pairs(explanation: dict[str, Any]) -> Text:
    """The pairs of elements that count most, a line for each: query element, gallery element."""
    from rich.text import Text

    lines = [
        f"{pair['query']}→{pair['gallery']} {pair['share']:4.0%} (cos {pair['cosine']:.2f})"
        for pair in explanation["pairs"][:PAIRS_IN_TABLE]
    ]
    return Text("\n".join(lines))


def print_info(info: dict[str, Any], stream: TextIO) -> None:
    """Print what there is to say of something, a line for each thing."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in info.items():
        table.add_row(name, Text(_plain(value)))
    Console(file=stream).print(table)


def label(query: dict[str, Any]) -> str:
    """Name a query for people: its text, its picture, its id, its line, or its number."""
    for name in ("text", "image", "id"):
        if name in query:
            return str(query[name])
    return f"line {query['line']}" if "line" in query else f"query {query['number']}"


def _plain(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "yes" if value else "-" if value is None else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False) if value else "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
