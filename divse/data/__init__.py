"""Data sets of pictures and captions.

DATASETS maps a name to `load(split, *, path=None, **options) -> ImageTextData`.
"""

from collections.abc import Callable

from divse.data import scenes
from divse.data.dataset import SPLITS, ImageTextData

DATASETS: dict[str, Callable[..., ImageTextData]] = {
    "scenes": scenes.load,
}

__all__ = ["DATASETS", "SPLITS", "ImageTextData"]
