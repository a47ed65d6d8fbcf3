"""What lies nearest to each element of a set: captions of a picture, pictures of a caption.

An element is as near to a set as to the nearest of its elements (cosine). Shapes: K, L elements of
the sets, D dimensions.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from divse.plots.page import BODY, GREY, INK, SMALL, Page, colours, line, wrapped
from divse.sets import EmbeddingSets
from divse.similarity import score

Pixels = NDArray[np.uint8]
FIRST, GAP, NUMBER = 1.55, 0.2, 0.36  # inches: first column, between columns, of a cosine
CONTENT = 8.4
PAIR = 0.08  # between two thumbnails
MOST_COLUMNS, LINES = 5, 4
FITS = "✓ "


class Neighbour(NamedTuple):
    """A set of the gallery, and how near it is: a cosine, or the similarity of whole sets."""

    row: int
    score: float


def nearest(
    elements: NDArray[Any], gallery: EmbeddingSets, topk: int, names: Sequence[Hashable] = ()
) -> list[list[Neighbour]]:
    """The `topk` nearest sets of each element (K, D); of sets with the same name, the nearest."""
    held = np.asarray(gallery.numpy().values, np.float32)
    cosines = np.einsum("kd,nld->knl", np.asarray(elements, np.float32), held).max(axis=2)
    return [best(row, topk, names) for row in cosines]


def nearest_wholes(
    one: EmbeddingSets,
    gallery: EmbeddingSets,
    topk: int,
    similarity: Mapping[str, Any],
    names: Sequence[Hashable] = (),
) -> list[Neighbour]:
    """The sets that are most similar to a whole set, by the model's own similarity."""
    scores = score(one.numpy().values, gallery.numpy().values, **similarity)
    return best(np.asarray(scores)[0], topk, names)


def best(scores: NDArray[Any], topk: int, names: Sequence[Hashable] = ()) -> list[Neighbour]:
    """The highest scores, the best first, with every name once."""
    found: dict[Hashable, Neighbour] = {}
    for row in np.argsort(-scores, kind="stable"):
        found.setdefault(names[row] if len(names) else int(row), Neighbour(int(row), scores[row]))
        if len(found) == topk:
            break
    return [Neighbour(row, float(value)) for row, value in found.values()]


@dataclass(frozen=True)
class Asked:
    """A picture or caption, and what its elements found.

    elements: the nearest of each element
    whole: what the whole set found
    fits: rows of the gallery that truly fit; None where that is not known
    """

    elements: list[list[Neighbour]]
    whole: list[Neighbour]
    name: str = ""
    pixels: Pixels | None = None
    text: str = ""
    fits: frozenset[int] | None = None


@dataclass(frozen=True)
class Columns:
    """Where the panels of a set's elements stand: rows of columns beside the first column."""

    elements: int
    hues: list[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "hues", colours(self.elements))

    @property
    def bands(self) -> int:
        """Rows of panels."""
        return -(-self.elements // MOST_COLUMNS)

    @property
    def columns(self) -> int:
        """Panels in a row."""
        return -(-self.elements // self.bands)

    @property
    def width(self) -> float:
        """Of a panel, inches."""
        return min(2.0, (CONTENT - FIRST) / self.columns - GAP)

    def left(self, element: int) -> float:
        """Left edge of an element's panel."""
        return 0.3 + FIRST + GAP + (element % self.columns) * (self.width + GAP)

    def band(self, element: int) -> int:
        """Row of an element's panel."""
        return element // self.columns


def texts_height(rows: Sequence[str], width: float) -> float:
    """Height of captions that `write_texts` writes."""
    lines = [min(LINES, len(wrapped(row, width - NUMBER, SMALL))) for row in rows]
    return sum(lines) * line(SMALL) + 0.05 * len(rows)


def write_texts(
    page: Page, found: Sequence[Neighbour], rows: Sequence[str], place: tuple[float, float, float]
) -> float:
    """Write scores and captions below one another at (left, top, width); return the end."""
    left, top, width = place
    for neighbour, row in zip(found, rows, strict=True):
        page.text(left, top, f"{neighbour.score:.2f}", size=SMALL, colour=GREY)
        top = page.text(left + NUMBER, top, row, width - NUMBER, SMALL, INK, most=LINES) + 0.05
    return top


def labelled(found: Sequence[Neighbour], captions: Sequence[str], asked: Asked) -> list[str]:
    """Captions of neighbours, marked where they fit."""
    fits = asked.fits or frozenset()
    return [(FITS if n.row in fits else "") + captions[n.row] for n in found]


def captions_page(asked: Sequence[Asked], captions: Sequence[str], gallery: str) -> Page:
    """Pictures, and the captions nearest to each of their elements."""
    columns = Columns(len(asked[0].elements))
    heights = [_captions_height(one, captions, columns) for one in asked]
    page = Page(
        "Nearest captions of each element of a picture's set",
        f"Out of {gallery}. Numbers: cosine of the element and the caption's nearest element; "
        f"under the picture, similarity of the whole sets.{mark_note(asked)}",
        sum(heights),
    )
    top = 0.0
    for one, height in zip(asked, heights, strict=True):
        _captions_row(page, one, captions, columns, top)
        top += height
    return page


def mark_note(asked: Sequence[Asked]) -> str:
    """Say what the mark means where it is used."""
    known = any(one.fits is not None for one in asked)
    return f" {FITS.strip()} the caption fits the picture." if known else ""


def first_height(one: Asked, captions: Sequence[str]) -> float:
    """Height of the first column: the picture, and what its whole set found."""
    return FIRST + 0.1 + line(BODY) + texts_height(labelled(one.whole, captions, one), FIRST) + 0.15


def first_column(page: Page, one: Asked, captions: Sequence[str], top: float) -> None:
    """Draw the picture, and what its whole set found."""
    if one.pixels is not None:
        page.picture(0.3, top, FIRST, one.pixels)
    below = page.text(0.3, top + FIRST + 0.08, "whole set", size=BODY, weight="bold")
    rows = labelled(one.whole, captions, one)
    write_texts(page, one.whole, rows, (0.3, below, FIRST))


def band_heights(
    one: Asked, captions: Sequence[str], columns: Columns, above: float = 0.0
) -> list[float]:
    """Heights of the rows of elements: their names, `above` more of something, and captions."""
    heights = [0.0] * columns.bands
    for k, found in enumerate(one.elements):
        text = texts_height(labelled(found, captions, one), columns.width)
        heights[columns.band(k)] = max(heights[columns.band(k)], line(BODY) + above + text + 0.2)
    return heights


def _captions_height(one: Asked, captions: Sequence[str], columns: Columns) -> float:
    return max(first_height(one, captions), sum(band_heights(one, captions, columns)) + 0.2)


def _captions_row(
    page: Page, one: Asked, captions: Sequence[str], columns: Columns, top: float
) -> None:
    first_column(page, one, captions, top)
    bands = band_heights(one, captions, columns)
    for k, found in enumerate(one.elements):
        left, start = columns.left(k), top + sum(bands[: columns.band(k)])
        start = element_name(page, k, columns, start)
        rows = labelled(found, captions, one)
        write_texts(page, found, rows, (left, start, columns.width))


def element_name(page: Page, element: int, columns: Columns, top: float) -> float:
    """Write the name of an element in its colour; return the end."""
    left = columns.left(element)
    page.text(left, top, "■", size=BODY, colour=columns.hues[element])
    return page.text(left + 0.16, top, f"element {element + 1}", size=BODY, weight="bold")


def pictures_page(asked: Sequence[Asked], pixels: Mapping[int, Pixels], gallery: str) -> Page:
    """Captions, and the pictures nearest to each of their elements."""
    columns = Columns(len(asked[0].elements))
    topk = max(len(found) for one in asked for found in [*one.elements, one.whole])
    band = line(BODY) + -(-topk // 2) * _thumbnail_height(columns.width) + 0.15
    height = columns.bands * band + line(BODY) + 0.1
    page = Page(
        "Nearest pictures of each element of a caption's set",
        f"Out of {gallery}. Numbers: cosine of the element and the picture's nearest element; at "
        f"the left, similarity of the whole sets.{_fits_note(asked)}",
        len(asked) * height,
    )
    for number, one in enumerate(asked):
        top = number * height
        quoted = page.text(0.3, top, f"“{one.text}”", CONTENT, BODY, weight="bold", most=1)
        start = page.text(0.3, quoted, "whole set", size=BODY, weight="bold")
        _thumbnails(page, one.whole, one, pixels, (0.3, start, columns.width))
        for k, found in enumerate(one.elements):
            start = element_name(page, k, columns, quoted + columns.band(k) * band)
            _thumbnails(page, found, one, pixels, (columns.left(k), start, columns.width))
    return page


def _thumbnail_height(width: float) -> float:
    """Of a row of two thumbnails with their numbers."""
    return (width - PAIR) / 2 + line(SMALL) + 0.05


def _fits_note(asked: Sequence[Asked]) -> str:
    known = any(one.fits is not None for one in asked)
    return f" {FITS.strip()} the picture fits the caption." if known else ""


def _thumbnails(
    page: Page,
    found: Sequence[Neighbour],
    one: Asked,
    pixels: Mapping[int, Pixels],
    place: tuple[float, float, float],
) -> None:
    left, top, width = place
    side = (width - PAIR) / 2
    for number, neighbour in enumerate(found):
        x = left + (number % 2) * (side + PAIR)
        y = top + (number // 2) * _thumbnail_height(width)
        page.picture(x, y, side, pixels[neighbour.row])
        mark = f" {FITS.strip()}" if neighbour.row in (one.fits or ()) else ""
        page.text(x, y + side, f"{neighbour.score:.2f}{mark}", size=SMALL, colour=GREY)
