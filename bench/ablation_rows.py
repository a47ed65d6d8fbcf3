"""The CSV of bench/ablation.py: a row for every finished run, in order, replaced at once."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

from ablation_configs import EVERY
from filelock import FileLock

RECALLS = [f"{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)]
SHARES = [f"share_{side}_{i}" for side in ("images", "texts") for i in range(1, 7)]
COLUMNS = [
    *("data", "config", "seed", "similarity", "head", "k", "alpha", "loss", "epochs", "rsum"),
    *(*RECALLS, "log_var_images", "log_var_texts", *SHARES, "torch", "device", "commit", "date"),
    "check",
]


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV, none if it is not there."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def add_row(path: Path, row: dict[str, Any]) -> int:
    """Add a row, in the order of data, configuration and seed; return how many there are.

    The file is replaced at once; other processes may add theirs meanwhile. Configurations that are
    not known here stand after the others, and are named on stderr.
    """
    known = list(EVERY)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        rows = [*read_rows(path), row]
        unknown = sorted({r["config"] for r in rows} - set(known))
        order = {name: place for place, name in enumerate([*known, *unknown])}
        rows.sort(key=lambda r: (r["data"], order[r["config"]], int(r["seed"])))
        write_rows(path, rows)
    if unknown:
        print(f"{path}: unknown configurations, kept: {', '.join(unknown)}", file=sys.stderr)
    return len(rows)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write all rows, with whatever columns they have beside the usual ones."""
    columns = list(dict.fromkeys([*COLUMNS, *(name for row in rows for name in row)]))
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=columns)
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)
