"""The strip under a hit of a contact sheet: which elements met, and their share of the score.

A bar as wide as the picture is divided among the query's elements by their shares, each in its
colour: strong for the pair with the hit's element that it met most, pale for its other pairs. Below
stand that pair, query element and hit's element with an arrow between, and its share, where they
fit. A legend beside the query shows the colours.
"""

from __future__ import annotations

from typing import Any

import numpy as np

COLOURS = ("#2563eb", "#e8710a", "#1a9850", "#c2255c", "#7048c6", "#0e8f9c", "#a07d00", "#5f6b7a")
INK, GREY = "#1b1f24", "#6a737d"
PALE = 0.3  # strength of the colour of what is not the best pair
BAR, TEXT, ARROW = 13, 12, 7
LINE = TEXT + 3
HEIGHT = BAR + 2 * LINE + 8
FOOTNOTE = (
    "Bars: each query element's share of the score; strong, with that pair's share below: the "
    "element of the hit that it met most; pale: the hit's other elements."
)


def draw_strip(
    pen: Any, font: Any, corner: tuple[int, int], width: int, explanation: dict[str, Any]
) -> None:
    """Draw one hit's explanation, of `HitExplanation.to_dict`."""
    left, top = corner
    weights = np.asarray(explanation["weights"])
    ends = np.cumsum(weights.sum(1)) / weights.sum()
    start = 0.0
    for end, pair in zip(ends, explanation["matches"], strict=True):
        first, strong, last = (
            left + round(width * float(share)) for share in (start, start + pair["share"], end)
        )
        start = float(end)
        colour = COLOURS[pair["query"] % len(COLOURS)]
        _block(pen, (first, top), last - first, _pale(colour))
        _block(pen, (first, top), strong - first, colour)
        _name(pen, font, (first, top + BAR + 3), last - first - 4, pair)


def _name(pen: Any, font: Any, corner: tuple[int, int], width: int, pair: dict[str, Any]) -> None:
    """Write a pair's elements and share, if they fit; the font has no arrow, so it is drawn."""
    left, top = corner
    query, hit, share = str(pair["query"]), str(pair["gallery"]), f"{pair['share']:.0%}"
    start = left + int(font.getlength(query)) + 2
    if max(start - left + ARROW + 2 + font.getlength(hit), font.getlength(share)) > width:
        return
    pen.text((left, top), query, font=font, fill=INK)
    tip, middle = start + ARROW, top + TEXT // 2 + 1
    for end in ((start, middle), (tip - 3, middle - 3), (tip - 3, middle + 3)):
        pen.line([end, (tip, middle)], fill=GREY)
    pen.text((tip + 3, top), hit, font=font, fill=INK)
    pen.text((left, top + LINE), share, font=font, fill=GREY)


def _block(pen: Any, corner: tuple[int, int], width: int, colour: str) -> None:
    """A part of the bar, with a gap behind it if it is wide enough to lose a pixel."""
    left, top = corner
    if width > 0:
        right = left + width - 1 - (width > 3)
        pen.rectangle((left, top, right, top + BAR - 1), fill=colour)


def _pale(colour: str) -> str:
    parts = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(255 + PALE * (part - 255)):02x}" for part in parts)


def draw_legend(pen: Any, font: Any, corner: tuple[int, int], width: int, count: int) -> None:
    """Draw the colours of a query's `count` elements, as many as fit one line."""
    left, top = corner
    for element in range(count):
        needed = 16 + int(font.getlength(str(element))) + 8
        room = 0 if element + 1 == count else 14
        if left + needed + room > corner[0] + width:
            pen.text((left, top), "…", font=font, fill=GREY)
            return
        pen.rectangle((left, top + 2, left + 10, top + 12), fill=COLOURS[element % len(COLOURS)])
        pen.text((left + 15, top), str(element), font=font, fill=GREY)
        left += needed
