"""`divse-data check`: what a path holds, what it lacks, and which commands run on it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from divse.data.layout import LAYOUTS, Layout, Report, SplitReport, find_layouts, look
from divse.training.check import check
from divse.training.config import Config, find_weights, presets, read_preset, unknown
from divse.training.run import check_encoders

SHOWN = 5  # missing files that the table names


def look_at(path: Path, layout: str, options: Mapping[str, Any]) -> list[Report]:
    """Look at a path as one layout, or as each that it holds."""
    reports = []
    for found in choose(path, layout):
        report = look(found, path, options)
        if report.usable:
            report.commands = list(commands(report, path, options))
        reports.append(report)
    return sorted(reports, key=lambda report: not report.usable)


def choose(path: Path, layout: str = "") -> list[Layout]:
    """The layout of a name, or those that a path holds."""
    if layout:
        named = [known for known in LAYOUTS if known.name == layout]
        if not named:
            raise ValueError(unknown("--layout", layout, [known.name for known in LAYOUTS]))
        return named
    found = find_layouts(path)
    if not found:
        known = "; ".join(f"{layout.name}: {layout.title}" for layout in LAYOUTS)
        raise ValueError(f"{path} holds none of the known layouts ({known})")
    return found


def commands(report: Report, path: Path, options: Mapping[str, Any]) -> Iterator[str]:
    """Command lines of train.py that run on data, the presets made for it first.

    What the user must add, such as weights of a backbone, stands behind them as a comment.
    """
    fitting = [name for name in presets() if fits(report, name)]
    for name in sorted(fitting, key=lambda name: (distance(report, name), name)):
        words = ["python", "train.py", "--preset", name, "--data", str(path)]
        given: dict[str, Any] = {"path": str(path), "options": dict(options)}
        if read_preset(name)["data"]["name"] != report.layout:
            words += ["--data.name", report.layout]
            given["name"] = report.layout
        if options:
            words += ["--data.options", *(f"{key}={value}" for key, value in options.items())]
        yield shlex.join(words) + need(Config.of(read_preset(name), {"data": given}))


def need(config: Config) -> str:
    """What settings lack to run here, as a comment; nothing if they run."""
    try:
        config = check(find_weights(config))
        check_encoders(config, fetch=False)  # a look at data does not wait for the network
    except (ValueError, FileNotFoundError, ImportError) as error:
        return f"  # {error}"
    return ""


def fits(report: Report, preset: str) -> bool:
    """Whether a preset reads such data, regions or pictures, and is not for another source."""
    settings = read_preset(preset)
    of_regions = settings.get("image", {}).get("encoder") == "regions"
    right_kind = settings["data"]["name"] != "scenes" and of_regions == report.regions
    source, other = source_of(report.name), source_of(preset)
    return right_kind and not (source and other and source != other)


def distance(report: Report, preset: str) -> int:
    """How far a preset is from data: made for its layout or source first, for another last."""
    if source_of(preset) or source_of(report.name):
        return 0 if source_of(preset) == source_of(report.name) else 2
    return 0 if read_preset(preset)["data"]["name"] == report.layout else 1


def source_of(name: str) -> str:
    """COCO or Flickr30K, as the name of data or of a preset says; empty if it says neither."""
    known = {"coco": "coco", "flickr30k": "flickr30k", "f30k": "flickr30k"}
    return next((source for word, source in known.items() if word in name.lower()), "")


def show(path: Path, reports: list[Report], stream: TextIO) -> None:
    """Print reports for people."""
    console = Console(file=stream, soft_wrap=True, highlight=False)
    usable = any(report.usable for report in reports)
    for report in reports:
        console.print(Text(report.layout, style="bold"), Text(f"{report.title}, in {path}"))
        if usable and not report.usable:
            problem = next(s.problem for s in report.splits.values() if s.problem)
            console.print(Text(f"not usable: {problem}", style="dim"))
            continue
        show_splits(report, console)
        for line in report.notes:
            console.print(Text(f"note: {line}", style="yellow"))
        for line in report.commands:
            console.print(Text(f"  {line}", style="green"))
        console.print()


def show_splits(report: Report, console: Console) -> None:
    """Print the splits of a layout: those that can be used, then what the others lack."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(no_wrap=True, justify="right")
    table.add_column(no_wrap=True)
    for name, split in report.splits.items():
        if not split.problem:
            counts = f"{split.pictures:,} pictures", f"{split.captions:,} captions"
            table.add_row(name, *counts, split.sample)
    console.print(table)
    for name, split in report.splits.items():
        if split.problem:
            console.print(Text(f"{name}: {_problem(split)}", style="red"))


def _problem(split: SplitReport) -> str:
    """What is wrong with a split; of many missing files the first, one a line."""
    if not split.missing:
        return split.problem
    named = [f"  {file}" for file in split.missing[:SHOWN]]
    if len(split.missing) > SHOWN:
        named.append(f"  and {len(split.missing) - SHOWN:,} more")
    return "\n".join([f"missing {len(split.missing):,} of {split.needed:,} files", *named])
