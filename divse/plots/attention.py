"""Attention maps: where in the picture each element of its set looks, and what it means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from divse.plots.neighbours import (
    FIRST,
    Asked,
    Columns,
    band_heights,
    element_name,
    first_column,
    first_height,
    labelled,
    mark_note,
    write_texts,
)
from divse.plots.page import BODY, GREY, LINE, SMALL, Page, line, plain

SIDE = 256  # pixels of a drawn map, its longer side
FADED = 0.12  # what is left of the picture where nobody looks


@dataclass(frozen=True)
class Looked:
    """A picture, what its elements found, and where they looked.

    maps: (K, rows, columns) of a grid or (K, R) of regions; each sums to one
    view: the part of the picture that the maps lie over, where there is a picture
    boxes: (R, 4) x1 y1 x2 y2 in pixels, where they are known
    """

    asked: Asked
    maps: NDArray[np.floating[Any]]
    view: NDArray[np.uint8] | None = None
    boxes: NDArray[np.floating[Any]] | None = None

    @property
    def cut(self) -> bool:
        """Whether the model reads a part of the picture only."""
        whole = self.asked.pixels
        return self.view is not None and whole is not None and self.view.shape != whole.shape


def attention_page(looked: Sequence[Looked], captions: Sequence[str], gallery: str) -> Page:
    """One row a picture: the picture, then what each element sees of it and its captions."""
    columns = Columns(len(looked[0].maps))
    heights = [_height(one, captions, columns) for one in looked]
    asked = [one.asked for one in looked]
    page = Page(
        "Where each element of a picture's set looks, and its nearest captions",
        f"{_how_to_read(looked)} Below, the nearest of {gallery}, with the cosine to their nearest "
        f"element; under the picture, similarity of the whole sets.{mark_note(asked)}",
        sum(heights),
    )
    top = 0.0
    for one, height in zip(looked, heights, strict=True):
        _row(page, one, captions, columns, top)
        top += height
    return page


def _how_to_read(looked: Sequence[Looked]) -> str:
    if all(one.maps.ndim == 3 for one in looked):
        picture = "picture's centre, all that the model reads," if looked[0].cut else "picture"
        return (
            f"The {picture} shows through where the element attends; the line encloses half of its "
            "attention."
        )
    if all(one.boxes is not None for one in looked):
        return "Boxes are drawn as strongly as the element attends to their region."
    return "Bars: attention to each region, as a multiple of an even spread."


def _panel_height(one: Looked, columns: Columns) -> float:
    if one.view is None:
        return columns.width * 0.7
    high, wide = one.view.shape[:2]
    return columns.width * float(high / max(high, wide))


def _bands(one: Looked, captions: Sequence[str], columns: Columns) -> list[float]:
    """Heights of the rows of panels."""
    panel = _panel_height(one, columns) + line(SMALL)
    return band_heights(one.asked, captions, columns, panel)


def _height(one: Looked, captions: Sequence[str], columns: Columns) -> float:
    beside = first_height(one.asked, captions) + line(BODY)
    return max(beside, sum(_bands(one, captions, columns))) + 0.1


def _row(page: Page, one: Looked, captions: Sequence[str], columns: Columns, top: float) -> None:
    page.text(0.3, top, one.asked.name, FIRST, BODY, GREY, most=1)
    first_column(page, one.asked, captions, top + line(BODY))
    bands = _bands(one, captions, columns)
    for k, found in enumerate(one.asked.elements):
        left = columns.left(k)
        start = element_name(page, k, columns, top + sum(bands[: columns.band(k)]))
        panel = (left, start, columns.width, _panel_height(one, columns))
        said = _draw_map(page, one, one.maps[k], columns.hues[k], panel)
        below = page.text(left, start + panel[3] + 0.03, said, size=SMALL, colour=GREY) + 0.05
        rows = labelled(found, captions, one.asked)
        write_texts(page, found, rows, (left, below, columns.width))


def _draw_map(
    page: Page,
    one: Looked,
    weights: NDArray[Any],
    hue: str,
    panel: tuple[float, float, float, float],
) -> str:
    """Draw a map; return a few words on it."""
    if weights.ndim == 2:
        assert one.view is not None, "a grid is made of a picture"
        return _draw_grid(page, one.view, weights, hue, panel)
    if one.boxes is not None and one.view is not None:
        return _draw_boxes(page, one.view, one.boxes, weights, hue, panel)
    return _draw_bars(page, weights, hue, panel)


def _draw_grid(
    page: Page,
    pixels: NDArray[np.uint8],
    weights: NDArray[Any],
    hue: str,
    panel: tuple[float, float, float, float],
) -> str:
    shown, light = spotlight(pixels, weights)
    axes = page.picture(panel[0], panel[1], panel[2], shown)
    level, area = half(light)
    if light.min() < level < light.max():
        axes.contour(light, levels=[level], colors=[hue], linewidths=1.6)
    return f"half on {100 * area:.0f} % of the area"


def spotlight(
    pixels: NDArray[np.uint8], weights: NDArray[Any]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The picture, shown where it is attended to, and the map (rows, columns) at its size.

    The map is scaled to a largest value of one.
    """
    from PIL import Image

    high, wide = pixels.shape[:2]
    scale = SIDE / max(high, wide)
    size = max(1, round(wide * scale)), max(1, round(high * scale))
    sharp = Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS
    picture = np.asarray(Image.fromarray(pixels).resize(size, sharp), np.float32)
    small = Image.fromarray(np.asarray(weights / weights.max(), np.float32))
    light = np.asarray(small.resize(size, Image.Resampling.BICUBIC)).clip(0, 1)
    light = light / light.max()
    kept = (FADED + (1 - FADED) * light)[..., None]
    return (255 * (1 - kept) + picture * kept).round().astype(np.uint8), light


def half(values: NDArray[Any]) -> tuple[float, float]:
    """Level above which half of the mass of a map lies, and the share of the area that holds it."""
    ordered = np.sort(values.ravel())[::-1].astype(np.float64)
    place = int(np.searchsorted(ordered.cumsum(), ordered.sum() / 2))
    return float(ordered[place]), (place + 1) / ordered.size


def _draw_boxes(
    page: Page,
    pixels: NDArray[np.uint8],
    boxes: NDArray[Any],
    weights: NDArray[Any],
    hue: str,
    panel: tuple[float, float, float, float],
) -> str:
    from matplotlib.patches import Rectangle

    faded = (255 - 0.45 * (255 - pixels.astype(np.float32))).astype(np.uint8)
    axes = page.picture(panel[0], panel[1], panel[2], faded)
    for place in np.argsort(weights):  # the strongest on top
        x1, y1, x2, y2 = boxes[place]
        strength = float(weights[place] / weights.max())
        corner, size = (x1, y1), (x2 - x1, y2 - y1)
        axes.add_patch(
            Rectangle(corner, *size, fill=False, edgecolor=hue, linewidth=2, alpha=strength)
        )
    return _regions_of_half(weights)


def _draw_bars(
    page: Page, weights: NDArray[Any], hue: str, panel: tuple[float, float, float, float]
) -> str:
    inset = 0.3  # room for the numbers of the axes
    axes = page.axes(panel[0] + inset, panel[1], panel[2] - inset, panel[3] - inset)
    axes.bar(np.arange(1, len(weights) + 1), weights * len(weights), color=hue, width=0.8)
    axes.axhline(1, color=LINE, linewidth=1)
    plain(axes)
    axes.set_xlabel("region", size=SMALL, color=GREY, labelpad=1)
    return _regions_of_half(weights)


def _regions_of_half(weights: NDArray[Any]) -> str:
    real = weights[weights > 0]
    count = int(round(half(real)[1] * len(real)))
    return f"half on {count} of {len(real)} regions"
