"""Read a picture file as uint8 RGB, whatever its mode, and make it a square."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

Picture = NDArray[np.uint8]  # (H, W, 3)
LONGEST = 16  # of a picture that is longer, times its shorter side, the ends are not resized


def read_picture(path: Path) -> Picture:
    """Read a picture file as uint8 (H, W, 3): upright, transparent parts white."""
    return _open(path, str(path))


def decode_picture(content: bytes, where: str) -> Picture:
    """Decode the bytes of a picture file as uint8 (H, W, 3); `where` names it in errors."""
    return _open(BytesIO(content), where)


def _open(source: Path | BytesIO, where: str) -> Picture:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(source) as picture:
            return as_rgb(ImageOps.exif_transpose(picture))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"cannot read the picture {where}: {error}") from error


def as_rgb(picture: Image) -> Picture:
    """Convert a PIL picture of any mode to uint8 (H, W, 3); transparency is put on white."""
    from PIL import Image

    if picture.mode.startswith("I;16"):  # 16 bits a sample: convert() would clip, not scale
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.has_transparency_data:
        layered = picture.convert("RGBA")
        ground = Image.new("RGBA", layered.size, "white")
        picture = Image.alpha_composite(ground, layered)
    return np.asarray(picture.convert("RGB"))


def resize(picture: Picture, size: int) -> Picture:
    """Resize (H, W, 3) to (size, size, 3), antialiased; nothing is cut off."""
    from PIL import Image

    if picture.shape[:2] == (size, size):
        return picture
    resized = Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(resized)


def center_crop(picture: Picture, size: int, crop_pct: float) -> Picture:
    """Resize the shorter side of (H, W, 3) to size / crop_pct, cut size x size out of the centre.

    What torchvision's Resize and CenterCrop give.
    """
    from PIL import Image

    height, width = (min(side, LONGEST * min(picture.shape[:2])) for side in picture.shape[:2])
    picture = middle(picture, height, width)
    shorter, least = int(size / crop_pct), min(height, width)
    shape = int(shorter * width / least), int(shorter * height / least)
    resized = Image.fromarray(picture).resize(shape, Image.Resampling.BICUBIC)
    return middle(np.asarray(resized), size, size)


def fitted_part(picture: Picture, size: int, crop_pct: float = 0.0) -> Picture:
    """The part of (H, W, 3) that `fit` makes a square of, as large as it is in the picture."""
    if not crop_pct:
        return picture
    least = min(picture.shape[:2])
    side = min(least, max(1, round(least * size / int(size / crop_pct))))
    return middle(picture, side, side)


def middle(picture: Picture, height: int, width: int) -> Picture:
    """The middle of (H, W, 3), (height, width, 3)."""
    top, left = round((picture.shape[0] - height) / 2), round((picture.shape[1] - width) / 2)
    return np.ascontiguousarray(picture[top : top + height, left : left + width])


def fit(picture: Picture, size: int, crop_pct: float = 0.0) -> Picture:
    """Make (size, size, 3) of a picture: its centre, or all of it squeezed where crop_pct is 0."""
    return center_crop(picture, size, crop_pct) if crop_pct else resize(picture, size)
