"""The embedding space in two dimensions, with sets drawn as sets.

Each picture and its captions share a hue: the picture's set is a filled hull of squares, each
caption's a pale star of dots about its middle. Everything else of the split lies grey behind.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from divse.plots.page import BODY, GREY, INK, LINE, SMALL, Page, colours, line, plain

Points = NDArray[np.floating[Any]]  # (n, 2)


@dataclass(frozen=True)
class Flat:
    """Points in the plane (n, 2), and what the axes are."""

    points: Points
    axes: tuple[str, str]


def pca(elements: NDArray[Any], seed: int = 0) -> Flat:
    """Project (n, D) on the two directions of largest variance."""
    centred = np.asarray(elements, np.float64) - elements.mean(axis=0, dtype=np.float64)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    directions = vectors[:, [-1, -2]]
    directions *= np.sign(directions[np.abs(directions).argmax(axis=0), [0, 1]])
    shares = 100 * values[[-1, -2]] / max(values.sum(), 1e-30)
    names = [
        f"{order} principal component ({share:.0f} % of the variance)"
        for order, share in zip(("first", "second"), shares, strict=True)
    ]
    return Flat(centred @ directions, (names[0], names[1]))


def tsne(elements: NDArray[Any], seed: int = 0) -> Flat:
    """Lay out (n, D) by t-SNE of cosine distances."""
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise ImportError("t-SNE needs scikit-learn: pip install scikit-learn") from None
    near = min(30.0, (len(elements) - 1) / 3)
    method = TSNE(metric="cosine", init="pca", perplexity=near, random_state=seed)
    return Flat(np.asarray(method.fit_transform(elements)), ("t-SNE 1", "t-SNE 2"))


def umap(elements: NDArray[Any], seed: int = 0) -> Flat:
    """Lay out (n, D) by UMAP of cosine distances."""
    try:
        from umap import UMAP
    except ImportError:
        raise ImportError("UMAP needs umap-learn: pip install umap-learn") from None
    near = min(15, len(elements) - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numba, and that a seed costs threads
        method = UMAP(metric="cosine", n_neighbors=near, random_state=seed)
        found = method.fit_transform(elements)
    return Flat(np.asarray(found), ("UMAP 1", "UMAP 2"))


METHODS: dict[str, Callable[..., Flat]] = {"pca": pca, "tsne": tsne, "umap": umap}
TITLES = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}


@dataclass(frozen=True)
class Family:
    """A picture and its captions: sets of elements (K, D), what the picture shows and is called."""

    name: str
    image: NDArray[Any]
    texts: Sequence[NDArray[Any]]
    pixels: NDArray[np.uint8] | None = None
    caption: str = ""


def check_method(method: str) -> None:
    """Refuse a method that is not known."""
    if method not in METHODS:
        raise ValueError(f"method: got {method!r}, expected one of {', '.join(METHODS)}")


def space_page(
    families: Sequence[Family], others: NDArray[Any], method: str, gallery: str, seed: int = 0
) -> Page:
    """Draw families among other elements (n, D); all are laid out together."""
    check_method(method)
    sets = [part for family in families for part in (family.image, *family.texts)]
    flat = METHODS[method](np.concatenate([*sets, others]), seed)
    places = np.split(flat.points, np.cumsum([len(part) for part in sets]))
    side, column = 5.9, 2.2
    page = Page(
        f"Sets in the embedding space ({TITLES[method]})",
        "A hue is a picture with its captions. Filled hull with squares: the elements of the "
        f"picture's set; dots joined to their middle: a caption's set. Grey: {gallery}. At the "
        "right, one caption of each picture.",
        side + 0.45,
    )
    axes = page.axes(0.3 + 0.5, 0, side - 0.5, side)
    axes.scatter(places[-1][:, 0], places[-1][:, 1], s=5, color=LINE, linewidths=0, zorder=1)
    found = iter(places)
    for family, hue in zip(families, colours(len(families)), strict=True):
        draw_hull(axes, next(found), hue)
        for _ in family.texts:
            draw_star(axes, next(found), hue)
    _name_axes(axes, flat, method)
    _legend(page, families, 0.3 + side + 0.25, column, side)
    return page


def draw_hull(axes: Any, points: Points, hue: str) -> None:
    """A picture's set: its elements as squares in a filled hull."""
    corners = hull(points)
    axes.fill(*corners.T, facecolor=hue, alpha=0.1, linewidth=0, zorder=2)
    axes.plot(*np.concatenate([corners, corners[:1]]).T, color=hue, linewidth=1.3, zorder=4)
    axes.scatter(*points.T, s=44, marker="s", color=hue, edgecolors="white", zorder=6)


def draw_star(axes: Any, points: Points, hue: str) -> None:
    """A caption's set: its elements as dots, joined to their middle."""
    middle = points.mean(axis=0)
    for point in points:
        axes.plot(*np.stack([middle, point]).T, color=hue, alpha=0.7, linewidth=1.1, zorder=3)
    axes.scatter(*points.T, s=20, color=hue, edgecolors="white", linewidths=0.6, zorder=5)


def hull(points: Points) -> Points:
    """Corners of the convex hull of (n, 2), counter-clockwise (Andrew's monotone chain)."""
    ordered = sorted({(float(x), float(y)) for x, y in points})
    if len(ordered) < 3:
        return np.array(ordered)

    def chain(row: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        corners: list[tuple[float, float]] = []
        for x, y in row:
            while len(corners) > 1:
                (x0, y0), (x1, y1) = corners[-2:]
                if (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) > 0:
                    break
                corners.pop()
            corners.append((x, y))
        return corners[:-1]

    return np.array(chain(ordered) + chain(ordered[::-1]))


def _name_axes(axes: Any, flat: Flat, method: str) -> None:
    plain(axes)
    axes.margins(0.05)
    axes.set_aspect("equal", adjustable="datalim")  # distances look alike both ways
    axes.set_xlabel(flat.axes[0], size=SMALL, color=GREY)
    axes.set_ylabel(flat.axes[1], size=SMALL, color=GREY)
    if method != "pca":  # their coordinates mean nothing
        axes.set_xticks([])
        axes.set_yticks([])


def _legend(
    page: Page, families: Sequence[Family], left: float, width: float, height: float
) -> None:
    """Pictures with a caption each, framed in their hue."""
    room = min(1.15, height / len(families))
    side = min(0.85, room - 0.12)
    for number, (family, hue) in enumerate(zip(families, colours(len(families)), strict=True)):
        top = number * room
        if family.pixels is not None:
            axes = page.picture(left, top, side, family.pixels)
            axes.set_axis_on()
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set(color=hue, linewidth=2.5)
        else:
            page.text(left, top, "■", size=BODY, colour=hue)
        words, beside = family.caption or family.name, left + side + 0.12
        most = max(1, int(room / line(SMALL)))
        page.text(beside, top, words, width - side - 0.12, SMALL, INK, most=min(6, most))
