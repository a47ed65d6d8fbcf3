"""What encode_images accepts: pictures in every form, or features of regions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from divse.data.pictures import Picture, as_rgb, read_picture
from divse.sets import as_tensor


def picture_array(image: Any) -> Picture:
    """Read a path, PIL image or array as uint8 (H, W, 3)."""
    if isinstance(image, str | Path):
        return read_picture(Path(image))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"images: got an array {image.dtype} {image.shape}, expected uint8 (H, W, 3)"
            )
        return image
    if hasattr(image, "has_transparency_data"):
        return as_rgb(image)
    raise TypeError(
        f"images: got a {type(image).__name__}, expected a path, a PIL image or a uint8 array"
    )


def region_array(features: Any) -> Tensor:
    """Features of the regions of one picture (R, C), float32."""
    if not isinstance(features, np.ndarray | Tensor) or features.ndim != 2 or not len(features):
        what = getattr(features, "shape", type(features).__name__)
        raise ValueError(
            f"images: got {what}; this model reads features of regions, one array (R, C) a picture "
            "with at least one region"
        )
    return as_tensor(features, name="images").float()  # memory-mapped arrays may be read-only
