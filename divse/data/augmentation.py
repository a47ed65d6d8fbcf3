"""Random changes of training pictures. A generator per picture and epoch makes them repeatable.

Two tables by the same names that settings use: VIEWS cut a square out of the picture as it was
read, CHANGES alter one that is S x S already. None is on by default: only the owner of the captions
knows which of them stay true ("left of" does not survive a flip).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from divse.data.pictures import Picture, resize

Change = Callable[[Picture, np.random.Generator], Picture]
View = Callable[[Picture, int, np.random.Generator], Picture]
AREA = (0.36, 1.0)  # shares of a picture that crops keep: the paper's, for grid features
ASPECT = (3 / 4, 4 / 3)  # width / height of a crop, as in torchvision's RandomResizedCrop
ATTEMPTS = 10  # crops that are drawn before the largest centred one is taken


def shift(picture: Picture, rng: np.random.Generator) -> Picture:
    """Move the picture by up to 1/16 of its side; the border is repeated."""
    reach = max(1, picture.shape[0] // 16)
    padded = np.pad(picture, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    top, left = rng.integers(0, 2 * reach + 1, size=2)
    return padded[top : top + picture.shape[0], left : left + picture.shape[1]]


def flip(picture: Picture, rng: np.random.Generator) -> Picture:
    """Mirror left and right, every other time. Captions must not tell the two apart."""
    return picture[:, ::-1] if rng.integers(2) else picture


def crop(picture: Picture, rng: np.random.Generator) -> Picture:
    """Cut out a square of AREA of the picture and resize it. What it loses, captions may name."""
    side = picture.shape[0]
    part = max(1, round(side * float(np.sqrt(rng.uniform(*AREA)))))
    top, left = rng.integers(0, side - part + 1, size=2)
    return resize(np.ascontiguousarray(picture[top : top + part, left : left + part]), side)


def resized_crop(picture: Picture, size: int, rng: np.random.Generator) -> Picture:
    """Cut AREA of a picture (H, W, 3) in an aspect ratio of ASPECT, resized to size x size."""
    height, width = picture.shape[:2]
    for _ in range(ATTEMPTS):
        area = height * width * rng.uniform(*AREA)
        aspect = np.exp(rng.uniform(*np.log(ASPECT)))
        rows, columns = round(float(np.sqrt(area / aspect))), round(float(np.sqrt(area * aspect)))
        if 0 < rows <= height and 0 < columns <= width:
            top, left = rng.integers(0, [height - rows + 1, width - columns + 1])
            break
    else:
        rows = min(height, round(width / ASPECT[0]))
        columns = min(width, round(height * ASPECT[1]))
        top, left = (height - rows) // 2, (width - columns) // 2
    return resize(np.ascontiguousarray(picture[top : top + rows, left : left + columns]), size)


def drop_regions(
    regions: NDArray[np.float32], share: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Leave out each region (R, C) with probability `share`; one always stays."""
    kept = rng.random(len(regions)) >= share
    if not kept.any():
        kept[rng.integers(len(regions))] = True
    return regions[kept]


CHANGES: dict[str, Change] = {"shift": shift, "flip": flip, "crop": crop}
VIEWS: dict[str, View] = {"resized_crop": resized_crop}
AUGMENTATIONS = (*CHANGES, *VIEWS)
