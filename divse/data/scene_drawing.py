"""Draw scenes: 64 x 64 RGB pictures with antialiased outlines, in whole numbers only.

Outlines are integer inequalities on a grid four times finer than the picture, and coverage counts
how many of a pixel's 16 samples lie inside, so the bytes are the same on every platform (floating
point rounds differently here and there). Stencils are cached: a picture costs well under a
millisecond.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from divse.data.scene_objects import FACT, FACTS, Draws

SIDE = 64
FINE = 4  # samples a pixel, each way
WINDOW = 22  # pixels: holds the largest object
RADII = {"small": (20, 24), "large": (33, 37)}  # in samples, so 5-6 and 8.25-9.25 pixels
JITTER = {"small": 4, "large": 1}  # pixels around the middle of the cell; neighbours never touch
NOISE = 9  # amplitude of the grain, grey levels
LITTER_RADII = (8, 12)  # of grey discs, in samples: 2-3 pixels, so an object is never hidden
PALETTE = {
    "red": (214, 39, 40),
    "orange": (245, 140, 20),
    "yellow": (236, 212, 40),
    "green": (40, 150, 60),
    "cyan": (40, 200, 205),
    "blue": (45, 80, 215),
    "purple": (125, 50, 170),
    "pink": (245, 140, 190),
}
Samples = NDArray[np.int64]


def _triangle(x: Samples, y: Samples, r: int) -> NDArray[np.bool_]:
    return (7 * abs(x) <= 4 * (y + r)) & (2 * y <= r)


def _outline(shape: str, x: Samples, y: Samples, r: int) -> NDArray[np.bool_]:
    """Which samples (x, y), measured from the middle, lie inside a shape of radius r."""
    square_of_distance = x * x + y * y
    match shape:
        case "circle":
            return square_of_distance <= r * r
        case "ring":
            return (square_of_distance <= r * r) & (4 * square_of_distance >= r * r)
        case "square":
            return 20 * np.maximum(abs(x), abs(y)) <= 17 * r
        case "cross":
            return (np.maximum(abs(x), abs(y)) <= r) & (3 * np.minimum(abs(x), abs(y)) <= r)
        case "triangle":
            return _triangle(x, y - r // 4, r)
        case "star":
            return _triangle(x, y, r) | _triangle(x, -y, r)
    raise ValueError(f"shape must be one of {', '.join(FACTS['shape'])}, got {shape!r}")


def _marks(texture: str, x: Samples, y: Samples) -> NDArray[np.bool_]:
    """Which samples carry the dark marks of a texture; the period is four pixels."""
    period = 8 * FINE  # coordinates are doubled, see _stencil
    match texture:
        case "plain":
            return np.zeros(np.broadcast_shapes(x.shape, y.shape), dtype=bool)
        case "striped":
            return np.broadcast_to((y + period // 4) % period < period // 2, (len(y), x.shape[1]))
        case "dotted":
            dx, dy = (v % period - period // 2 for v in (x, y))
            return dx * dx + dy * dy <= (period // 3) ** 2
    raise ValueError(f"texture must be one of {', '.join(FACTS['texture'])}, got {texture!r}")


@lru_cache(maxsize=1024)
def _stencil(shape: str, texture: str, radius: int) -> tuple[Samples, Samples]:
    """Coverage by body and by marks, each (WINDOW, WINDOW, 1) in sixteenths."""
    # Doubled coordinates put samples on odd numbers, so the middle falls between two of them.
    axis = 2 * np.arange(WINDOW * FINE, dtype=np.int64) + 1 - WINDOW * FINE
    x, y = axis[None, :], axis[:, None]
    inside = _outline(shape, x, y, 2 * radius)
    marked = inside & _marks(texture, x, y)
    counts = [
        mask.reshape(WINDOW, FINE, WINDOW, FINE).sum(axis=(1, 3), dtype=np.int64)[..., None]
        for mask in (inside & ~marked, marked)
    ]
    return counts[0], counts[1]


def _paint(canvas: NDArray[np.int64], thing: NDArray[np.int8], draws: Draws) -> None:
    """Blend one object into the canvas (SIDE, SIDE, 3), in place."""
    word = {name: words[thing[FACT[name]]] for name, words in FACTS.items()}
    body, marks = _stencil(word["shape"], word["texture"], draws.between(*RADII[word["size"]]))
    colour = np.array([c + draws.between(-10, 10) for c in PALETTE[word["colour"]]])
    reach = JITTER[word["size"]]
    top, left = (
        (2 * int(thing[FACT[axis]]) + 1) * SIDE // 6 - WINDOW // 2 + draws.between(-reach, reach)
        for axis in ("row", "column")
    )
    _blend(canvas, body, marks, colour, (top, left))


def _litter(canvas: NDArray[np.int64], draws: Draws) -> None:
    """Blend one grey disc into the canvas, anywhere, in place."""
    body, marks = _stencil("circle", "plain", draws.between(*LITTER_RADII))
    grey = np.full(3, draws.between(70, 190))
    middle = [draws.below(SIDE) - WINDOW // 2 for _ in range(2)]
    _blend(canvas, body, marks, grey, (middle[0], middle[1]))


def _blend(
    canvas: NDArray[np.int64],
    body: Samples,
    marks: Samples,
    colour: NDArray[np.int64],
    corner: tuple[int, int],
) -> None:
    """Blend a stencil into the canvas (SIDE, SIDE, 3) at a corner (row, column), in place."""
    # A window may hang over the edge of the picture; what lies outside is cut off.
    top, left = (max(0, c) for c in corner)
    bottom, right = (min(SIDE, c + WINDOW) for c in corner)
    window = (
        slice(top - corner[0], bottom - corner[0]),
        slice(left - corner[1], right - corner[1]),
    )
    body, marks = body[window], marks[window]
    patch = canvas[top:bottom, left:right]
    whole = FINE * FINE
    mixed = patch * (whole - body - marks) + colour * body + (colour * 3 // 10) * marks
    canvas[top:bottom, left:right] = (mixed + whole // 2) // whole


def draw_scene(
    objects: NDArray[np.int8], draws: Draws, noise: int = NOISE, clutter: int = 0
) -> NDArray[np.uint8]:
    """Draw objects (M, 6), rows of -1 left out, as uint8 (SIDE, SIDE, 3).

    noise: amplitude of the grain
    clutter: how many grey discs lie over the objects
    """
    ground = [draws.between(218, 242) for _ in range(3)]
    canvas = np.empty((SIDE, SIDE, 3), dtype=np.int64)
    canvas[:] = ground
    for thing in objects[objects[:, 0] >= 0]:
        _paint(canvas, thing, draws)
    for _ in range(clutter):
        _litter(canvas, draws)
    grain = draws.octets(SIDE * SIDE * 3).reshape(canvas.shape).astype(np.int64)
    canvas += grain * (2 * noise + 1) // 256 - noise
    return canvas.clip(0, 255).astype(np.uint8)
