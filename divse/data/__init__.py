"""Data sets of pictures and captions.

DATASETS maps a name to `load(split, *, path=None, **options) -> ImageTextData`.
"""

from collections.abc import Callable

from divse.data import (
    butd,
    captions,
    coco_captions,
    huggingface,
    id_mapping,
    karpathy,
    regions,
    scenes,
    webdataset,
)
from divse.data.augmentation import AUGMENTATIONS
from divse.data.batching import Batch, Batches
from divse.data.dataset import SPLITS, ImageTextData
from divse.data.vocabulary import Vocabulary

DATASETS: dict[str, Callable[..., ImageTextData]] = {
    "scenes": scenes.load,
    "captions": captions.load,
    "karpathy": karpathy.load,
    "regions": regions.load,
    "butd": butd.load,
    "id_mapping": id_mapping.load,
    "coco_captions": coco_captions.load,
    "huggingface": huggingface.load,
    "webdataset": webdataset.load,
}

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "SPLITS",
    "Batch",
    "Batches",
    "ImageTextData",
    "Vocabulary",
]
