"""Two-tower models that embed pictures and captions as sets."""

from divse.models.config import HeadConfig, ImageConfig, TextConfig, TwoTowerConfig
from divse.models.heads import HEADS
from divse.models.image import IMAGE_ENCODERS
from divse.models.text import TEXT_ENCODERS
from divse.models.two_tower import SetOutput, TwoTower

__all__ = [
    "HEADS",
    "IMAGE_ENCODERS",
    "TEXT_ENCODERS",
    "HeadConfig",
    "ImageConfig",
    "SetOutput",
    "TextConfig",
    "TwoTower",
    "TwoTowerConfig",
]
