"""How the gradient of a loss is shared among the elements of a set, by similarity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from divse.evaluation import mean_interval
from divse.plots.page import BODY, GREY, INK, SMALL, Page, line, plain, ramp, text_width
from divse.plots.table import (
    Row,
    by_group,
    configurations,
    find_reference,
    label_in,
)

SIDES = ("images", "texts")
TITLES = {"images": "pictures' sets", "texts": "captions' sets"}
BAR = 0.42
ORDER = ["MIL", "Chamfer", "Smooth-Chamfer", "MP"]  # from sparse to dense


@dataclass(frozen=True)
class Shares:
    """Shares of the gradient, the largest first: (runs, K) of pictures' and of captions' sets."""

    name: str
    images: NDArray[np.float64]
    texts: NDArray[np.float64]

    def side(self, name: str) -> NDArray[np.float64]:
        """Shares of one side."""
        return self.images if name == "images" else self.texts


def shares_of(rows: Sequence[Row], data: str = "", reference: str = "") -> list[Shares]:
    """Shares of the configurations that vary the similarity, from a table of runs.

    Without settings in the table all configurations with as many elements as the reference.
    """
    some = configurations(rows, "share_images_1")
    names = list(dict.fromkeys(one.data for one in some))
    if data not in names and (data or len(names) > 1):
        raise ValueError(f"data: got {data!r}, expected one of {', '.join(names)}")
    some = [one for one in some if one.data == (data or names[0])]
    base = find_reference(some, reference)
    groups = by_group(some, base)
    group = "similarity" if "similarity" in groups else "other"
    members = groups.get(group, [base])
    found = []
    for one in members:
        sides = [
            np.stack([_shares(one.values, side, i) for i in _places(one, side)], axis=1)
            for side in SIDES
        ]
        found.append(Shares(label_in(one, group), sides[0], sides[1]))
    return sorted(found, key=lambda one: ORDER.index(one.name) if one.name in ORDER else len(ORDER))


def _places(one: Any, side: str) -> list[int]:
    place = 1
    while np.isfinite(one.values(f"share_{side}_{place}")).all():
        place += 1
    return list(range(1, place))


def _shares(values: Any, side: str, place: int) -> NDArray[np.float64]:
    found: NDArray[np.float64] = values(f"share_{side}_{place}")
    return found


def supervision_page(shares: Sequence[Shares], source: str) -> Page:
    """Stacked bars: the share of each element, the most supervised at the left."""
    _check(shares)
    count = shares[0].images.shape[1]
    page = Page(
        "How much of a set's gradient each element receives",
        f"{source} A bar is the whole gradient of a set, cut into the shares of its {count} "
        f"elements, the largest first; dotted: even shares.{_whisker_note(shares)} At the right, "
        "how many elements are supervised in effect (exp of the entropy of the shares).",
        len(shares) * BAR + 0.85,
    )
    names = 0.15 + max(text_width(one.name, BODY) for one in shares)
    width = (8.4 - names - 2 * 0.75) / 2
    for number, side in enumerate(SIDES):
        left = 0.3 + names + number * (width + 0.75)
        _panel(page, shares, side, left, width)
    for row, one in enumerate(shares):
        page.text(0.3, 0.3 + row * BAR + (BAR - line(BODY)) / 2, one.name, size=BODY)
    return page


def _whisker_note(shares: Sequence[Shares]) -> str:
    several = any(len(one.images) > 1 for one in shares)
    return " Orange: 95 % interval of the largest share over the runs." if several else ""


def _check(shares: Sequence[Shares]) -> None:
    if not shares:
        raise ValueError("shares: got none, expected those of one similarity or more")
    widths = {(one.name, side): one.side(side).shape[1] for one in shares for side in SIDES}
    if len(set(widths.values())) != 1:
        raise ValueError(f"shares: sets of different sizes cannot share a figure, got {widths}")


def _panel(page: Page, shares: Sequence[Shares], side: str, left: float, width: float) -> None:
    page.text(left, 0, TITLES[side], size=BODY, weight="bold")
    axes = page.axes(left, 0.3, width, len(shares) * BAR)
    plain(axes)
    axes.spines["left"].set_visible(False)
    axes.set(xlim=(0, 100), ylim=(len(shares), 0), yticks=[], xticks=[0, 25, 50, 75, 100])
    axes.set_xlabel("share of the gradient (%)", size=SMALL, color=GREY)
    for row, one in enumerate(shares):
        _bar(axes, 100 * one.side(side), row + 0.5, width)
        effective = effective_elements(one.side(side).mean(axis=0))
        below = 0.3 + row * BAR + (BAR - line(SMALL)) / 2
        count = one.side(side).shape[1]
        page.text(left + width + 0.06, below, f"{effective:.1f} of {count}", size=SMALL)
    count = shares[0].side(side).shape[1]
    for place in range(1, count):
        axes.axvline(100 * place / count, color=INK, linewidth=0.8, linestyle=(0, (1, 3)), zorder=0)


def _bar(axes: Any, percent: NDArray[np.float64], middle: float, width: float) -> None:
    """One bar; the whisker is the interval of the largest share over the runs."""
    start = 0.0
    for place, (share, hue) in enumerate(
        zip(percent.mean(axis=0), ramp(percent.shape[1]), strict=True)
    ):
        axes.barh(middle, share, left=start, height=0.68, color=hue, edgecolor="white", linewidth=1)
        words = f"{share:.0f}"
        if share / 100 * width > text_width(words, SMALL) + 0.06:
            dark = place < percent.shape[1] / 2
            axes.text(
                start + share / 2,
                middle,
                words,
                ha="center",
                va="center_baseline",
                size=SMALL,
                color="white" if dark else INK,
            )
        start += share
    if len(percent) > 1:
        interval = mean_interval(percent[:, 0])
        axes.plot(
            [interval.low, interval.high],
            [middle + 0.22] * 2,
            color="#D55E00",
            linewidth=1.8,
            zorder=6,
        )


def effective_elements(shares: NDArray[np.float64]) -> float:
    """exp of the entropy of shares (K,): 1 if one element receives all, K if all receive alike."""
    positive = shares[shares > 0] / shares.sum()
    return math.exp(-float((positive * np.log(positive)).sum()))
