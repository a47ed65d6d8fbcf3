"""Bars of an ablation: each configuration against the reference, paired over the seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from divse.evaluation import Interval
from divse.evaluation.seeds import Comparison, compare
from divse.plots.page import BODY, GREY, INK, SMALL, Page, line, plain, text_width
from divse.plots.table import (
    GROUPS,
    Configuration,
    Row,
    by_group,
    configurations,
    figure_name,
    find_reference,
    label_in,
)

BAR, HEADING, PANEL_END = 0.27, 0.34, 0.6
ABOVE, BELOW, OPEN = "#0072B2", "#D55E00", "#9aa3ad"
NUMBERS = 2.55  # inches of the columns of numbers


@dataclass(frozen=True)
class Line:
    """A configuration: its mean, its differences to the reference by seed, and what they say."""

    name: str
    mean: float
    differences: list[float]
    comparison: Comparison | None = None  # of two or more seeds
    reference: bool = False

    @property
    def interval(self) -> Interval | None:
        """Of the mean difference, a single seed alone; None if no seed is shared."""
        if self.comparison is not None:
            return self.comparison.interval
        return Interval(*self.differences * 3) if self.differences else None

    @property
    def hue(self) -> str:
        """Colour of a difference that is resolved; grey of others."""
        if self.comparison is None or not self.comparison.resolved:
            return OPEN
        return ABOVE if self.comparison.interval.estimate > 0 else BELOW


def ablation_page(
    rows: Sequence[Row], column: str = "rsum", reference: str = "", data: Sequence[str] = ()
) -> Page:
    """One panel a data set, one block of bars for each setting that is varied.

    A configuration that is alone on its data is compared with nothing: it has no panel, unless it
    was asked for or there is no other.
    """
    some = configurations(rows, column, data)
    members: dict[str, list[Configuration]] = {}
    for one in some:
        members.setdefault(one.data, []).append(one)
    several = {name: mine for name, mine in members.items() if len(mine) > 1 or name in data}
    panels = {
        name: lines_of(mine, column, reference) for name, mine in (several or members).items()
    }
    page = Page(
        f"Ablation: {figure_name(column)} against the reference",
        "Bars: mean difference to the reference with the same seed; dots: seeds; lines: 95 % "
        "intervals over the seeds. Blue lies above the reference, orange below; grey is not "
        "resolved (p ≥ 0.05 after Holm, of all bars together).",
        sum(_height(groups) for groups in panels.values()),
    )
    top = 0.0
    for name, groups in panels.items():
        _panel(page, name, groups, column, top)
        top += _height(groups)
    return page


def lines_of(
    some: Sequence[Configuration], column: str, reference: str = ""
) -> dict[str, list[Line]]:
    """Lines of each group, words sorted by their mean, numbers by themselves."""
    base = find_reference(some, reference)
    figures = {one.name: one.seeds(column) for one in some}
    theirs, comparisons = figures[base.name], compare(figures, base.name)
    found = {}
    for group, members in by_group(some, base).items():
        lines = []
        for one in members:
            mine = figures[one.name]
            shared = [seed for seed in mine if seed in theirs and one is not base]
            gaps = [mine[seed] - theirs[seed] for seed in shared]
            mean = sum(mine.values()) / len(mine)
            comparison = comparisons.get(one.name)
            lines.append(Line(label_in(one, group), mean, gaps, comparison, one is base))
        if group not in ("k", "alpha"):
            lines.sort(key=lambda item: -item.mean)
        found[group] = lines
    return found


def _height(groups: dict[str, list[Line]]) -> float:
    return sum(HEADING + BAR * len(lines) for lines in groups.values()) + PANEL_END + 0.25


def _panel(page: Page, data: str, groups: dict[str, list[Line]], column: str, top: float) -> None:
    names = [item.name for lines in groups.values() for item in lines]
    heads = [GROUPS.get(group, group) for group in groups]
    widest = [text_width(name, BODY, "bold") for name in [*names, *heads]]
    left = 0.45 + max(widest) + 0.15
    right = 8.7 - NUMBERS
    if data:
        page.text(0.3, top, data, size=BODY + 1.5, weight="bold")
    page.text(right + 0.2, top, figure_name(column)[:10], size=SMALL, colour=GREY)
    page.text(right + 0.85, top, "difference [95 %]", size=SMALL, colour=GREY)
    top += 0.2
    high = sum(HEADING + BAR * len(lines) for lines in groups.values())
    axes = page.axes(left, top, right - left, high)
    axes.set(ylim=(high, 0), yticks=[])
    plain(axes, "x")
    axes.spines["left"].set_visible(False)
    axes.axvline(0, color=INK, linewidth=1, zorder=3)
    axes.set_xlabel(f"difference in {figure_name(column)}", size=SMALL, color=GREY)
    below = 0.0
    for group, lines in groups.items():
        page.text(
            0.3,
            top + below + HEADING - line(BODY) - 0.04,
            GROUPS.get(group, group),
            size=BODY,
            weight="bold",
        )
        below += HEADING
        for item in lines:
            _line(page, axes, item, (top, below), right)
            below += BAR
    axes.margins(x=0.06)


def _line(page: Page, axes: Any, item: Line, place: tuple[float, float], right: float) -> None:
    top, below = place
    middle, words = below + BAR / 2, top + below + (BAR - line(BODY)) / 2
    weight = "bold" if item.reference else "normal"
    page.text(0.45, words, item.name, size=BODY, weight=weight)
    shown = f"{item.mean:.1f}".replace("-", "−")
    page.text(right + 0.6 - text_width(shown, SMALL), words, shown, size=SMALL)
    interval = item.interval
    if interval is None:
        said = "reference" if item.reference else "no seed in common"
        page.text(right + 0.85, words, said, size=SMALL, colour=GREY)
        return
    axes.barh(middle, interval.estimate, height=0.7 * BAR, color=item.hue, alpha=0.8, zorder=2)
    axes.plot([interval.low, interval.high], [middle] * 2, color=INK, linewidth=1.1, zorder=5)
    axes.scatter(
        item.differences,
        [middle] * len(item.differences),
        s=9,
        color="white",
        edgecolors=INK,
        linewidths=0.7,
        zorder=6,
    )
    said = str(interval)
    if item.comparison is None:
        said = f"{interval.estimate:+.1f} (one seed)"
    page.text(right + 0.85, words, said.replace("-", "−"), size=SMALL)
