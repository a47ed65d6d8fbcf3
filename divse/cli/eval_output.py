"""Results of `divse-eval`: one document, shown as tables, as Markdown, or as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from typing import Any, TextIO

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from divse.evaluation.protocols import Answer
from divse.evaluation.resampling import between, differences, intervals

LABELS = {"map_at_r": "mAP@R", "r_precision": "R-P"}
ENDLESS = 100_000  # columns of a file or pipe, which has no width
RATED = {"sits": "SITS", "sis": "SIS", "sts": "STS"}


@dataclass(frozen=True)
class Resampling:
    """How intervals and tests are drawn; no resamples, no intervals."""

    resamples: int = 2000
    confidence: float = 0.95
    seed: int = 0

    def __bool__(self) -> bool:
        return self.resamples > 0

    def options(self) -> dict[str, Any]:
        """Keyword arguments of divse.evaluation.resampling."""
        return {
            "resamples": self.resamples,
            "confidence": self.confidence,
            "seed": self.seed,
        }


@dataclass
class Results:
    """Answers of each model, protocol by protocol, and the log Var of its sets."""

    resampling: Resampling
    names: list[str] = field(default_factory=list)
    answers: list[list[Answer]] = field(default_factory=list)
    spread: list[dict[str, float]] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, answers: list[Answer], spread: dict[str, float]) -> None:
        """Add a model's answers, under a name of its own."""
        numbered = chain([name], (f"{name} ({number})" for number in count(2)))
        self.names.append(next(word for word in numbered if word not in self.names))
        self.answers.append(answers)
        self.spread.append(spread)

    def document(self, compare: bool) -> dict[str, Any]:
        """Everything as one object, ready for JSON; comparisons are with the first model."""
        document: dict[str, Any] = {"data": self.data, "models": [], "notes": self.notes()}
        for name, answers, spread in zip(self.names, self.answers, self.spread, strict=True):
            protocols = {
                answer.protocol.name: {
                    "title": answer.protocol.title,
                    "queries": queries(answer),
                    "figures": figures(answer, self.resampling),
                }
                for answer in answers
            }
            document["models"].append({"name": name, "protocols": protocols, "log_var": spread})
        if self.resampling:
            document |= self.resampling.options()
        if compare:
            document["comparisons"] = [
                {
                    "a": self.names[0],
                    "b": name,
                    "protocols": compared(self.answers[0], answers, self.resampling),
                }
                for name, answers in zip(self.names[1:], self.answers[1:], strict=True)
            ]
        return document

    def notes(self) -> list[str]:
        """What was left out, each once."""
        every = [note for answers in self.answers for a in answers for note in a.protocol.notes]
        return list(dict.fromkeys(every))


def queries(answer: Answer) -> dict[str, int]:
    """Judged queries of each way."""
    found: dict[str, int] = {}
    tasks = answer.protocol.tasks
    for task in tasks:
        found[task.way] = found.get(task.way, 0) + len(task.judgement)
    return found


def figures(answer: Answer, resampling: Resampling) -> dict[str, Any]:
    """Figures of an answer with their intervals; correlations with their standard deviation."""
    found: dict[str, Any] = {name: {"value": f.value} for name, f in answer.figures.items()}
    if resampling and found:
        for name, interval in intervals(answer.figures, **resampling.options()).items():
            found[name] |= {"low": interval.low, "high": interval.high}
    for name, samples in answer.correlations.items():
        value, spread = 100 * float(np.nanmean(samples)), 100 * float(np.nanstd(samples))
        found[name] = {"value": value, "std": spread}
    return found


def compared(
    first: Sequence[Answer], second: Sequence[Answer], resampling: Resampling
) -> dict[str, Any]:
    """Differences of two models, first minus second, in every protocol that both answered."""
    found: dict[str, Any] = {}
    for a, b in zip(first, second, strict=True):
        rows: dict[str, Any] = {}
        shared = [name for name in a.figures if name in b.figures]
        if shared:
            tested = differences(
                {name: a.figures[name] for name in shared},
                {name: b.figures[name] for name in shared},
                **resampling.options(),
            )
            for name, (interval, p) in tested.items():
                rows[name] = {
                    "difference": interval.estimate,
                    "low": interval.low,
                    "high": interval.high,
                    "p": p,
                }
        for name in (name for name in a.correlations if name in b.correlations):
            change = 100 * (a.correlations[name] - b.correlations[name])
            point = np.array([np.nanmean(change)])
            interval = between(point, change[:, None], resampling.confidence)[0]
            rows[name] = {
                "difference": interval.estimate,
                "low": interval.low,
                "high": interval.high,
            }
        found[a.protocol.name] = rows
    return found


@dataclass(frozen=True)
class Page:
    """A table: a title, columns, and rows of texts."""

    title: str
    columns: list[str]
    rows: list[list[str]]

    def turned(self) -> Page:
        """The same table with its columns as rows."""
        columns, *rows = map(list, zip(self.columns, *self.rows, strict=True))
        return Page(self.title, columns, rows)


def pages(document: dict[str, Any], with_intervals: bool) -> list[Page]:
    """Tables of a document, one a protocol, in the paper's layout; then log Var, comparisons."""
    models, found = document["models"], []
    for name, first in models[0]["protocols"].items():
        of_each = [model["protocols"][name]["figures"] for model in models]
        columns = list(dict.fromkeys(column for figures in of_each for column in figures))
        rows = [
            [model["name"], *(_cell(figures.get(column), with_intervals) for column in columns)]
            for model, figures in zip(models, of_each, strict=True)
        ]
        found.append(Page(first["title"], ["", *map(label, columns)], rows))
    if any(model["log_var"] for model in models):
        rows = [
            [model["name"], *(_plain(model["log_var"].get(side)) for side in ("images", "texts"))]
            for model in models
        ]
        found.append(Page("log Var", ["", "pictures", "captions"], rows))
    comparisons = document.get("comparisons", [])
    return found + [page for entry in comparisons for page in _changes(entry, document)]


def _changes(entry: dict[str, Any], document: dict[str, Any]) -> list[Page]:
    titles = document["models"][0]["protocols"]
    columns = ["", "difference", f"{document['confidence']:.0%} interval", "p"]
    return [
        Page(
            f"{entry['a']} minus {entry['b']}, {titles[name]['title']}",
            columns,
            [
                [
                    label(figure),
                    f"{row['difference']:+.1f}",
                    f"{row['low']:+.1f} to {row['high']:+.1f}",
                    f"{row['p']:.4f}" if "p" in row else "",
                ]
                for figure, row in rows.items()
            ],
        )
        for name, rows in entry["protocols"].items()
    ]


def label(figure: str) -> str:
    """Name a figure for people: i2t_r1 is i2t R@1."""
    if figure in RATED:
        return RATED[figure]
    way, _, metric = figure.partition("_")
    if not metric:
        return figure.upper()
    return f"{way} {LABELS.get(metric) or metric.replace('r', 'R@')}"


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _cell(figure: dict[str, float] | None, with_intervals: bool) -> str:
    if figure is None:
        return ""
    text = f"{figure['value']:.1f}"
    if "std" in figure:
        return f"{text} ±{figure['std']:.1f}"
    if with_intervals and "low" in figure:
        return f"{text} [{figure['low']:.1f}, {figure['high']:.1f}]"
    return text


def markdown(found: Sequence[Page], notes: Sequence[str]) -> str:
    """Tables as Markdown, in one text."""
    parts = []
    for page in found:
        lines = [page.columns, ["---"] + ["---:"] * (len(page.columns) - 1), *page.rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        parts.append(f"**{page.title}**\n\n{body}\n")
    if notes:
        parts.append("\n".join(f"- {note}" for note in notes) + "\n")
    return "\n".join(parts)


def show(found: Sequence[Page], notes: Sequence[str], stream: TextIO) -> None:
    """Print tables for people, figures below one another where a terminal is too narrow."""
    console = Console(file=stream)
    if not console.is_terminal:
        console = Console(file=stream, width=ENDLESS)
    for page in found:
        table = _table(page)
        wanted = console.measure(table, options=console.options.update(width=ENDLESS)).maximum
        if wanted > console.width:
            table = _table(page.turned())
        console.print(Text(page.title, style="bold"))
        console.print(table)
        console.print()
    for note in notes:
        console.print(Text(f"note: {note}", style="dim"))


def _table(page: Page) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for number, column in enumerate(page.columns):
        justify: Any = "right" if number else "left"
        table.add_column(column, justify=justify, overflow="fold", no_wrap=not number)
    for row in page.rows:
        table.add_row(*map(Text, row))
    return table
