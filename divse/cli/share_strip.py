"""The strip under a hit of a contact sheet: which elements met, and their share of the score.

A bar as wide as the picture is divided among the pairs of elements, the largest share first, in the
colour of the query's element and with the numbers "query·hit" and the share where they fit; what is
left is grey. A legend beside the query shows its elements' colours.
"""

from __future__ import annotations

from typing import Any

COLOURS = ("#2563eb", "#e8710a", "#1a9850", "#c2255c", "#7048c6", "#0e8f9c", "#a07d00", "#5f6b7a")
OTHERS, INK, GREY = "#d9dde2", "#1b1f24", "#6a737d"
BAR, TEXT = 13, 12
HEIGHT = BAR + 2 * (TEXT + 3) + 6
SMALLEST = 0.02  # shares below this go to the grey rest
FOOTNOTE = (
    "Bars: which element of the query met which of the hit (query·hit, from 0), by share of the "
    "score; grey: all other pairs."
)


def draw_strip(
    pen: Any, font: Any, corner: tuple[int, int], width: int, explanation: dict[str, Any]
) -> None:
    """Draw the pairs of one hit's explanation (`HitExplanation.to_dict`)."""
    left, top = corner
    pen.rectangle((left, top, left + width - 1, top + BAR - 1), fill=OTHERS)
    start = 0.0
    for pair in explanation["pairs"]:
        if pair["share"] < SMALLEST:
            break
        first, last = (left + round(width * share) for share in (start, start + pair["share"]))
        start += pair["share"]
        colour = COLOURS[pair["query"] % len(COLOURS)]
        pen.rectangle((first, top, last - 2, top + BAR - 1), fill=colour)
        below = top + BAR + 3
        for text, ink in (
            (f"{pair['query']}·{pair['gallery']}", INK),
            (f"{pair['share']:.0%}", GREY),
        ):
            if font.getlength(text) <= last - first - 3:
                pen.text((first, below), text, font=font, fill=ink)
            below += TEXT + 3


def draw_legend(pen: Any, font: Any, corner: tuple[int, int], width: int, count: int) -> None:
    """Draw the colours of a query's `count` elements, as many as fit one line."""
    left, top = corner
    for element in range(count):
        needed = 16 + font.getlength(str(element)) + 8
        more = element + 1 < count
        if left + needed + (14 if more else 0) > corner[0] + width:
            pen.text((left, top), "…", font=font, fill=GREY)
            return
        colour = COLOURS[element % len(COLOURS)]
        pen.rectangle((left, top + 2, left + 10, top + 12), fill=colour)
        pen.text((left + 15, top), str(element), font=font, fill=GREY)
        left += int(needed)
