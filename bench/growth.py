"""Plot of `bench_search.json`: time of a query against the number of sets, both logarithmic.

One panel for each K, D and similarity, a line for each peer that reaches the recall, named at its
right end. Needs nothing but Python; plot.py writes it for results that it is given.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Point = tuple[float, float]
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 470, 330, 52, 150, 34, 34  # of a panel, pixels
LABEL = 12  # pixels between the names of two lines, at least
OWN, OTHERS = "#d62728", ("#1f77b4", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f")
DASHES = ("", "6 3", "2 3", "8 3 2 3")


def lines_of(rows: Iterable[Row]) -> dict[str, list[Point]]:
    """Points (N, ms) of each peer, in order of N."""
    found: dict[str, list[Point]] = {}
    for row in rows:
        found.setdefault(row["peer"], []).append((row["N"], row["ms"]))
    return {peer: sorted(points) for peer, points in found.items()}


def spread(places: list[float], least: float, most: float) -> list[float]:
    """Ascending places, moved until they are `least` apart and none is beyond `most`."""
    found: list[float] = []
    for place in places:
        found.append(max(place, found[-1] + least) if found else place)
    for i in reversed(range(len(found))):
        found[i] = min(found[i], most)
        most = found[i] - least
    return found


def ticks(low: float, high: float) -> list[float]:
    """Powers of ten from `low` to `high`."""
    return [10.0**i for i in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]


class Axes:
    """Where a point lies in a panel."""

    def __init__(self, found: dict[str, list[Point]], left: float) -> None:
        points = [point for line in found.values() for point in line]
        self.x = ticks(min(x for x, _ in points), max(x for x, _ in points))
        self.y = ticks(min(y for _, y in points), max(y for _, y in points))
        self.left, self.right = left + LEFT, left + WIDTH - RIGHT

    def place(self, x: float, y: float) -> Point:
        """Pixels of a point."""
        across, up = (
            math.log10(value / axis[0]) / max(1.0, math.log10(axis[-1] / axis[0]))
            for value, axis in ((x, self.x), (y, self.y))
        )
        inner = HEIGHT - TOP - BOTTOM
        return self.left + across * (self.right - self.left), TOP + (1 - up) * inner

    def grid(self) -> list[str]:
        """Lines and numbers of both axes."""
        parts = []
        for y in self.y:
            _, at = self.place(self.x[0], y)
            parts.append(f'<path d="M{self.left} {at:.1f}H{self.right}" stroke="#ddd"/>')
            parts.append(f'<text x="{self.left - 5}" y="{at + 4:.1f}" class="y">{y:g}</text>')
        for x in self.x:
            at, _ = self.place(x, self.y[0])
            parts.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 16}" class="x">{x:,.0f}</text>')
        return parts


def panel(found: dict[str, list[Point]], title: str, left: float) -> list[str]:
    """One panel: axes, a line for each peer, its name beside its last point."""
    axes = Axes(found, left)
    parts = [f'<text x="{axes.left}" y="{TOP - 14}" font-weight="bold">{title}</text>']
    parts += axes.grid()
    ends = sorted(found, key=lambda peer: axes.place(*found[peer][-1])[1])
    places = [axes.place(*found[peer][-1])[1] for peer in ends]
    heights = spread(places, LABEL, HEIGHT - BOTTOM)
    for number, (peer, height) in enumerate(zip(ends, heights, strict=True)):
        color = OWN if peer.startswith("divse") else OTHERS[number % len(OTHERS)]
        dash = DASHES[number % len(DASHES)]
        at = [axes.place(*point) for point in found[peer]]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.6" '
            f'stroke-dasharray="{dash}"/>'
        )
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{color}"/>' for x, y in at]
        x, y = at[-1]
        parts.append(
            f'<path d="M{x:.1f} {y:.1f}L{axes.right + 8} {height:.1f}" stroke="{color}" '
            'stroke-width="0.5"/>'
        )
        text = f'<text x="{axes.right + 10}" y="{height + 4:.1f}" fill="{color}">{peer}</text>'
        parts.append(text)
    return parts


def svg(rows: list[Row]) -> str:
    """A panel for each data, K, D and similarity that was measured."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = (row["data"], row["K"], row["D"], row["similarity"])
        groups.setdefault(key, []).append(row)
    width = WIDTH * len(groups)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT + 20}" '
        'font-family="sans-serif" font-size="11">',
        "<style>.y{text-anchor:end}.x{text-anchor:middle}</style>",
        f'<rect width="{width}" height="{HEIGHT + 20}" fill="#fff"/>',
    ]
    for i, ((data, k, dim, similarity), own) in enumerate(groups.items()):
        parts += panel(lines_of(own), f"{data}, K={k} D={dim}, {similarity}", i * WIDTH)
    text = "ms of one query against the number of sets, at equal recall"
    parts.append(f'<text x="8" y="{HEIGHT + 12}" fill="#555">{text}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def write(rows: list[Row], folder: Path) -> list[Path]:
    """Write search_growth.svg; nothing where no row has a time at the recall."""
    shown = [row for row in rows if row.get("ms") and row["reached"] == "yes"]
    if not shown:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "search_growth.svg"
    path.write_text(svg(shown))
    return [path]
