"""Labels of points that lie neither on one another nor on what is drawn.

Greedy: each label takes the place of least cost among those around its point. Boxes are
(left, bottom, right, top) in inches of the page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from divse.plots.page import INK, SMALL, Page, font, line, text_width

Box = tuple[float, float, float, float]
REACHES = (0.1, 0.18, 0.3, 0.45, 0.65, 0.9, 1.2)
DIRECTIONS = 16
LEADER = 0.17  # a label farther away is joined to its point
APART = 0.07  # between labels side by side, or two of them read as one
OVER_LABEL, OVER_MARK, OUTSIDE, NEARER_ANOTHER = 100.0, 12.0, 200.0, 4.0


def place_labels(
    page: Page,
    axes: Any,
    points: Sequence[tuple[float, float]],
    names: Sequence[str],
    marks: Sequence[Box],
) -> list[Box]:
    """Write the names of points (in data coordinates) beside them, clear of `marks`."""
    frame = box_of(axes)
    taken: list[Box] = []
    anchors = [inches(axes, point) for point in points]
    for place, name in enumerate(names):
        anchor, others = anchors[place], anchors[:place] + anchors[place + 1 :]
        size = text_width(name, SMALL), line(SMALL)
        choices = list(_places(anchor, size))
        costs = [
            _cost(box, reach, frame, taken, marks) + _doubt(box, anchor, others)
            for box, reach in choices
        ]
        box, reach = choices[costs.index(min(costs))]
        taken.append(box)
        if reach > LEADER:
            _join(axes, anchor, box)
        middle = (box[1] + box[3]) / 2
        at = box[0] / page.width, middle / page.height
        page.figure.text(
            *at, name, va="center_baseline", color=INK, parse_math=False, **font(SMALL)
        )
    return taken


def inches(axes: Any, point: tuple[float, float]) -> tuple[float, float]:
    """Data coordinates in inches of the page."""
    x, y = axes.transData.transform(point) / axes.figure.dpi
    return float(x), float(y)


def box_of(axes: Any) -> Box:
    """The frame of axes."""
    place = axes.get_window_extent().extents / axes.figure.dpi
    return float(place[0]), float(place[1]), float(place[2]), float(place[3])


def around(point: tuple[float, float], radius: float) -> Box:
    """A box about a point."""
    return point[0] - radius, point[1] - radius, point[0] + radius, point[1] + radius


def overlap(a: Box, b: Box) -> float:
    """Area that two boxes share."""
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, wide) * max(0.0, high)


def _places(anchor: tuple[float, float], size: tuple[float, float]) -> Any:
    """Boxes of the given size on rays from a point, the nearest first."""
    for reach in REACHES:
        for step in range(DIRECTIONS):
            angle = 2 * math.pi * step / DIRECTIONS
            x, y = anchor[0] + reach * math.cos(angle), anchor[1] + reach * math.sin(angle)
            left = x - size[0] * (1 - math.cos(angle)) / 2
            below = y - size[1] * (1 - math.sin(angle)) / 2
            yield (left, below, left + size[0], below + size[1]), reach


def _cost(box: Box, reach: float, frame: Box, taken: Sequence[Box], marks: Sequence[Box]) -> float:
    area = (box[2] - box[0]) * (box[3] - box[1])
    outside = area - overlap(box, frame)
    wide = box[0] - APART, box[1], box[2] + APART, box[3]
    over = sum(overlap(wide, other) for other in taken)
    marked = sum(overlap(box, mark) for mark in marks)
    covered = OUTSIDE * outside + OVER_LABEL * over + OVER_MARK * marked
    return covered / area + reach


def _doubt(box: Box, anchor: tuple[float, float], others: Sequence[tuple[float, float]]) -> float:
    """How much a label seems to belong to another point, which lies as near to it."""
    nearest = min((distance(box, other) for other in others), default=math.inf)
    return NEARER_ANOTHER * max(0.0, distance(box, anchor) + 0.05 - nearest)


def distance(box: Box, point: tuple[float, float]) -> float:
    """From a point to the nearest edge of a box; zero inside."""
    across = max(box[0] - point[0], 0.0, point[0] - box[2])
    up = max(box[1] - point[1], 0.0, point[1] - box[3])
    return math.hypot(across, up)


def _join(axes: Any, anchor: tuple[float, float], box: Box) -> None:
    near = min(max(anchor[0], box[0]), box[2]), min(max(anchor[1], box[1]), box[3])
    ends = axes.transData.inverted().transform(
        [[value * axes.figure.dpi for value in point] for point in (anchor, near)]
    )
    axes.plot(*ends.T, color=INK, linewidth=0.5, alpha=0.5, zorder=1)
