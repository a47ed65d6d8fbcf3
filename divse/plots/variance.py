"""Spread of the sets against quality: log Var and RSUM, a point a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from divse.evaluation import Interval, mean_interval
from divse.plots.labels import Box, around, inches, place_labels
from divse.plots.page import BODY, GREY, INK, SMALL, Page, colours, plain, text_width
from divse.plots.table import (
    Configuration,
    Row,
    by_group,
    configurations,
    figure_name,
    find_reference,
    group_of,
    label_in,
    number,
)

PANEL, LEFT = 4.1, 0.95
SIDES = ("images", "texts")
VARIED = {"similarity": "similarity", "head": "head", "k": "K", "alpha": "α"}


@dataclass(frozen=True)
class Point:
    """A configuration: its runs (n, 2), log Var and quality, and their means with intervals."""

    name: str
    hue: str
    runs: NDArray[np.float64]

    @property
    def intervals(self) -> tuple[Interval, Interval]:
        """Means of both axes."""
        return mean_interval(self.runs[:, 0]), mean_interval(self.runs[:, 1])

    @property
    def mean(self) -> tuple[float, float]:
        """Where the large dot lies."""
        x, y = self.intervals
        return x.estimate, y.estimate


def variance_page(
    rows: Sequence[Row],
    side: str = "images",
    column: str = "rsum",
    reference: str = "",
    data: Sequence[str] = (),
) -> Page:
    """One panel a data set; runs without a log Var (sets of one element) are left out."""
    if side not in SIDES:
        raise ValueError(f"side: got {side!r}, expected {' or '.join(SIDES)}")
    across = f"log_var_{side}"
    judged = [row for row in rows if math.isfinite(number(row, column))]
    every, some = (configurations(judged, name, data) for name in (column, across))
    names = list(dict.fromkeys(one.data for one in some))
    bases = [find_reference([o for o in some if o.data == name], reference) for name in names]
    page = Page(
        f"Spread of the sets and {figure_name(column)}",
        "Small dots: runs. Large dot: mean of a configuration, with 95 % intervals over its runs. "
        "log Var: natural logarithm of the mean circular variance of a set; the farther right, "
        f"the more its elements differ.{_reference_note(some, bases)}"
        f"{_left_out(every, some, bases)}",
        len(names) * PANEL,
    )
    for place, (name, base) in enumerate(zip(names, bases, strict=True)):
        panel = [one for one in some if one.data == name]
        points, hues = points_of(panel, (across, column), base)
        _key(page, name, hues, place * PANEL)
        _panel(page, points, (across, column), place * PANEL + 0.3)
    return page


def _reference_note(some: Sequence[Configuration], bases: Sequence[Configuration]) -> str:
    """Say which settings the references have; the same on all data, or nothing is said."""
    notes = set()
    for base in bases:
        groups = by_group([one for one in some if one.data == base.data], base)
        notes.add(", ".join(label_in(base, group) for group in groups if group in VARIED))
    only = notes.pop() if len(notes) == 1 else ""
    return f" Reference: {only}." if only else ""


def _left_out(
    every: Sequence[Configuration],
    some: Sequence[Configuration],
    bases: Sequence[Configuration],
) -> str:
    """Name what has no point, as the other figures call it."""
    shown = {one.name for one in some}
    base = {one.data: one for one in bases}
    missing = {
        label_in(one, group_of(one, base[one.data])) if one.data in base else one.name: 0
        for one in every
        if one.name not in shown
    }
    return f" Without any spread, so not shown: {'; '.join(missing)}." if missing else ""


def points_of(
    some: Sequence[Configuration], columns: tuple[str, str], base: Configuration
) -> tuple[list[Point], dict[str, str]]:
    """Points of the configurations of one data set, and the hue of each setting varied."""
    groups = by_group(some, base)
    hues = dict(zip(groups, colours(len(groups)), strict=True))
    points = []
    for group, members in groups.items():
        for one in members:
            if one is not base:
                points.append(Point(label_in(one, group), hues[group], _runs(one, columns)))
    if list(groups) == ["other"]:  # nothing tells which of them the others vary
        return [*points, Point(label_in(base, "other"), hues["other"], _runs(base, columns))], {}
    hues["reference"] = INK
    return [*points, Point("reference", INK, _runs(base, columns))], hues


def _runs(one: Configuration, columns: tuple[str, str]) -> NDArray[np.float64]:
    return np.stack([one.values(column) for column in columns], axis=1)


def _panel(page: Page, points: Sequence[Point], columns: tuple[str, str], top: float) -> None:
    axes = page.axes(LEFT, top, 8.7 - LEFT, PANEL - 0.95)
    plain(axes, "both")
    for point in points:
        _draw(axes, point)
    axes.margins(0.08)
    axes.autoscale_view()
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())  # labels are placed in these
    axes.set_xlabel(figure_name(columns[0]), size=SMALL, color=GREY)
    axes.set_ylabel(figure_name(columns[1]), size=SMALL, color=GREY)
    marks = [mark for point in points for mark in _marks(axes, point)]
    place_labels(page, axes, [p.mean for p in points], [p.name for p in points], marks)


def _key(page: Page, data: str, hues: dict[str, str], top: float) -> None:
    """The data set, and which hue varies what."""
    left = LEFT
    if data:
        page.text(left, top, data, size=BODY, weight="bold")
        left += text_width(data, BODY, "bold") + 0.3
    for group, hue in hues.items():
        name = f"{VARIED.get(group, group)} varied" if hue != INK else group
        page.text(left, top, "●", size=BODY, colour=hue)
        page.text(left + 0.15, top + 0.01, name, size=SMALL, colour=GREY)
        left += text_width(name, SMALL) + 0.35


def _draw(axes: Any, point: Point) -> None:
    x, y = point.intervals
    axes.scatter(*point.runs.T, s=12, color=point.hue, alpha=0.45, linewidths=0, zorder=3)
    axes.plot([x.low, x.high], [y.estimate] * 2, color=point.hue, linewidth=0.9, zorder=4)
    axes.plot([x.estimate] * 2, [y.low, y.high], color=point.hue, linewidth=0.9, zorder=4)
    axes.scatter(*point.mean, s=60, color=point.hue, edgecolors="white", zorder=5)


def _marks(axes: Any, point: Point) -> list[Box]:
    """Boxes of dots and intervals, which labels keep clear of."""
    x, y = point.intervals
    dots = [around(inches(axes, (float(a), float(b))), 0.03) for a, b in point.runs]
    left, right = (inches(axes, (value, y.estimate)) for value in (x.low, x.high))
    below, above = (inches(axes, (x.estimate, value)) for value in (y.low, y.high))
    across = (left[0], left[1] - 0.01, right[0], right[1] + 0.01)
    up = (below[0] - 0.01, below[1], above[0] + 0.01, above[1])
    return [*dots, around(inches(axes, point.mean), 0.06), across, up]
