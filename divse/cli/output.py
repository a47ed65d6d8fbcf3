"""Answers for people (a table for each query) and for programs (one JSON line for each query)."""

from __future__ import annotations

import json
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

Answer = dict[str, Any]  # query, plan, certified, hits: [{rank, id, score, and the columns}]


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
    """Name a user's column "score" or "rank" otherwise: it must not hide the result's own."""
    return {f"column {name}" if name in ("rank", "score") else name: row[name] for name in row}


def print_json(found: Answer, stream: TextIO) -> None:
    """Print an answer as one line."""
    print(json.dumps(found, ensure_ascii=False, default=str), file=stream, flush=True)


def print_table(found: Answer, stream: TextIO) -> None:
    """Print an answer as a table: rank, score, id and the columns of the gallery."""
    console = Console(file=stream)
    proof = "exact" if found["certified"] else f"{found['plan']}, not certified"
    title = Text(f"{label(found['query'])}  ", style="bold")
    console.print(title.append(f"({proof})", style="dim"), highlight=False)
    columns = [name for name in found["hits"][0] if name not in ("rank", "score")]
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("rank", "score"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in columns:
        table.add_column(name, overflow="ellipsis", no_wrap=name == "id")
    for hit in found["hits"]:
        texts = [Text(str(hit[name])) for name in columns]
        table.add_row(str(hit["rank"]), f"{hit['score']:.4f}", *texts)
    console.print(table)
    console.print()


def print_info(info: dict[str, Any], stream: TextIO) -> None:
    """Print what a gallery is, a line for each thing."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in info.items():
        shown = f"{value:,}" if isinstance(value, int) else _plain(value)
        table.add_row(name, Text(shown))
    Console(file=stream).print(table)


def label(query: dict[str, Any]) -> str:
    """Name a query for people: its text, its picture, its id, or its number."""
    for name in ("text", "image", "id"):
        if name in query:
            return str(query[name])
    return f"query {query['number']}"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False) if value else "-"
    return str(value)
