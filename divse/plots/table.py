"""Runs as rows of a table, from CSV files (bench/ablation.py) or run folders of train.py.

Only `config` (or `model`) and the figure that is drawn are needed; with `data`, `seed`,
`similarity`, `head`, `k` and `alpha` the configurations are named and grouped by what they vary.
"""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from divse.evaluation.seeds import model_name
from divse.plots.trained import data_name, read_settings

Row = dict[str, Any]
TEST = "test.json"
REFERENCE = {"similarity": "smooth_chamfer", "head": "set_prediction", "k": 4.0, "alpha": 16.0}
NAMES = {
    "smooth_chamfer": "Smooth-Chamfer",
    "chamfer": "Chamfer",
    "mil": "MIL",
    "mp": "MP",
    "maxsim": "MaxSim",
    "set_prediction": "set prediction",
    "pie_net": "PIE-Net",
    "transformer": "Transformer",
    "pooling": "attention pooling",
    "info_nce": "InfoNCE",
}
GROUPS = {
    "similarity": "Similarity",
    "head": "Head",
    "k": "Elements K",
    "alpha": "Sharpness α",
    "other": "Configurations",
}
FIGURES = {
    "rsum": "RSUM",
    "log_var_images": "log Var of the pictures' sets",
    "log_var_texts": "log Var of the captions' sets",
}


@dataclass(frozen=True)
class Configuration:
    """The runs of one configuration on one data set."""

    name: str
    data: str
    rows: list[Row]

    def values(self, column: str) -> NDArray[np.float64]:
        """A figure of every run; nan where it is missing."""
        return np.array([number(row, column) for row in self.rows])

    def seeds(self, column: str) -> dict[str, float]:
        """A figure by seed, where it is there."""
        found = {}
        for place, row in enumerate(self.rows):
            seed = row.get("seed")
            found[str(place if seed in (None, "") else seed)] = number(row, column)
        return {seed: value for seed, value in found.items() if math.isfinite(value)}

    def setting(self, name: str) -> Any:
        """A setting: a number where it is one, or text; None if the table does not tell."""
        value = self.rows[0].get(name)
        if value in (None, ""):
            return None
        try:
            return float(value)
        except ValueError:
            return value


def read_runs(paths: Sequence[Path]) -> list[Row]:
    """Rows of CSV files and run folders; a folder of runs gives all runs in it."""
    rows = [row for path in paths for row in _read(path)]
    if not rows:
        raise ValueError(f"no runs in {', '.join(map(str, paths))}")
    return rows


def _read(path: Path) -> list[Row]:
    if path.is_dir():
        folders = (
            [path] if (path / TEST).is_file() else sorted(f.parent for f in path.glob(f"*/{TEST}"))
        )
        if not folders:
            raise FileNotFoundError(f"{path}: neither a finished run nor a folder of them ({TEST})")
        return [_row(folder) for folder in folders]
    with path.open(newline="", encoding="utf-8") as file:
        rows: list[Row] = list(csv.DictReader(file))
    if rows and not {"config", "model"} & rows[0].keys():
        raise ValueError(f"{path}: expected a column config (or model), got {', '.join(rows[0])}")
    return rows


def _row(folder: Path) -> Row:
    """A finished run as bench/ablation.py writes it."""
    config = read_settings(folder)
    figures = json.loads((folder / TEST).read_text())
    name = model_name(folder.resolve().name, config.train.seed)
    settings: Row = {"data": data_name(config), "config": name, "seed": config.train.seed}
    settings |= {"similarity": config.loss.similarity, "head": config.model.head}
    alpha = config.loss.alpha if config.loss.similarity == "smooth_chamfer" else None
    return {**settings, "k": config.model.k, "alpha": alpha, **figures}


def number(row: Row, column: str) -> float:
    """A number of a row; nan where there is none."""
    value = row.get(column)
    if value in (None, ""):
        return math.nan
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"column {column}: got {value!r}, expected a number") from None


def configurations(
    rows: Sequence[Row], column: str, data: Sequence[str] = ()
) -> list[Configuration]:
    """Rows that have a figure, by data and configuration, in the order of the table.

    Rows with another loss or number of epochs than most of their data are data of their own, called
    "scenes (loss: triplet)": what is compared was trained alike. So are rows with a column `check`,
    which were added to look for a reason. `data` names those to take.
    """
    panels = _panels(rows)
    found: dict[tuple[str, str], list[Row]] = {}
    for row, panel in zip(rows, panels, strict=True):
        if math.isfinite(number(row, column)):
            key = panel, str(row.get("config") or row.get("model"))
            found.setdefault(key, []).append(row)
    if not found:
        known = dict.fromkeys(name for row in rows for name in row)
        raise ValueError(f"no run has a number {column}; the columns are {', '.join(known)}")
    some = [Configuration(name, panel, mine) for (panel, name), mine in found.items()]
    names = list(dict.fromkeys(one.data for one in some))
    for name in data:
        if name not in names:
            raise ValueError(f"data: got {name!r}, expected one of {', '.join(names)}")
    return [one for one in some if not data or one.data in data]


def _panels(rows: Sequence[Row]) -> list[str]:
    """The data of each row, and what differs in its training from most runs on it."""
    trained = [
        tuple(str(row.get(name) or "") for name in ("data", "loss", "epochs", "check"))
        for row in rows
    ]
    usual: dict[str, tuple[str, ...]] = {}
    for training, _ in Counter(trained).most_common():
        usual.setdefault(training[0], training)
    found = []
    for data, loss, epochs, check in trained:
        _, usual_loss, usual_epochs, _ = usual[data]
        parts = [f"loss: {NAMES.get(loss, loss)}"] if loss != usual_loss else []
        parts += [f"{epochs} epochs"] if epochs != usual_epochs else []
        parts += [f"check: {check}"] if check else []
        found.append(f"{data} ({', '.join(parts)})".lstrip() if parts else data)
    return found


def find_reference(some: Sequence[Configuration], name: str = "") -> Configuration:
    """The configuration that others are compared with: by name, or the paper's, or the first."""
    for one in some:
        if one.name == name:
            return one
    if name:
        known = ", ".join(one.name for one in some)
        raise ValueError(f"reference: got {name!r}, expected one of {known}")
    ours = [one for one in some if all(one.setting(s) == v for s, v in REFERENCE.items())]
    return (ours or list(some))[0]


def group_of(one: Configuration, reference: Configuration) -> str:
    """What a configuration varies: a column `group`, or the setting that differs."""
    if one.setting("group") is not None:
        return str(one.setting("group"))
    for setting in ("k", "head", "similarity", "alpha"):
        mine, theirs = one.setting(setting), reference.setting(setting)
        if mine is not None and theirs is not None and mine != theirs:
            return setting
    return "other"


def label_in(one: Configuration, group: str) -> str:
    """Name of a configuration among those that vary the same."""
    value = one.setting(group) if group in GROUPS else None
    if value is None:
        return NAMES.get(one.name, one.name.replace("_", " "))
    if group == "k":
        pooled = ", pooled" if one.setting("head") == "pooling" else ""
        return (f"K = {value:g}" if isinstance(value, float) else f"K = {value}") + pooled
    if group == "alpha":
        return f"α = {value:g}" if isinstance(value, float) else f"α = {value}"
    return NAMES.get(str(value), str(value).replace("_", " "))


def by_group(
    some: Sequence[Configuration], reference: Configuration
) -> dict[str, list[Configuration]]:
    """Configurations by what they vary, the reference in every group; numbers in order."""
    found: dict[str, list[Configuration]] = {}
    for one in some:
        if one is not reference:
            found.setdefault(group_of(one, reference), []).append(one)
    order = [*(g for g in GROUPS if g in found), *(g for g in found if g not in GROUPS)]
    groups = {group: [*found[group], reference] for group in order} or {"other": [reference]}
    return {group: in_order(members, group) for group, members in groups.items()}


def in_order(members: list[Configuration], group: str) -> list[Configuration]:
    """Configurations by the number that they vary; as they are if it is none."""
    settings = [one.setting(group) for one in members]
    if not all(isinstance(value, float) for value in settings):
        return members
    return [members[place] for place in np.argsort(settings, kind="stable")]


def figure_name(column: str) -> str:
    """How a column is called on an axis."""
    return FIGURES.get(column, column.replace("_", " "))
