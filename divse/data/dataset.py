"""ImageTextData: pictures and the captions written about them, whatever folder they came from.

Captions stand picture by picture, so every caption of a picture is a run of consecutive rows:

    image_of_caption (T,) int64, non-decreasing: the picture each caption was written about
    relevance (I, T) bool or None: every pair that fits, where an oracle knows more than the source

A picture is there as pixels (`image(i)`), as precomputed features of its regions (`features(i)`),
or as both. Legend: I pictures, T captions, R regions of a picture, C channels of a feature.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from divse.data.pictures import Picture, read_picture

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class ImageTextData:
    """One split of a picture-and-caption data set; `len` is the number of pictures.

    `read_image(i)` gives picture i as uint8 (H, W, 3) and is called on every use; it is None where
    only features are there. `read_features(i)` gives the R region features of picture i, float
    (R, C), with R differing from picture to picture; it is None where there are none. `oracle()`,
    if there is one, gives the (I, T) relevance and is called once, on first use; `image_paths`
    names the picture files, where there are such.
    """

    name: str
    split: str
    image_ids: list[str]
    captions: list[str]
    image_of_caption: NDArray[np.int64]
    read_image: Callable[[int], NDArray[np.uint8]] | None = field(repr=False)
    oracle: Callable[[], NDArray[np.bool_]] | None = field(default=None, repr=False)
    image_paths: list[Path] | None = field(default=None, repr=False)
    read_features: Callable[[int], NDArray[np.floating]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Refuse rows that cannot be captions of consecutive pictures."""
        owners = np.asarray(self.image_of_caption, dtype=np.int64)
        object.__setattr__(self, "image_of_caption", owners)
        if owners.shape != (len(self.captions),):
            raise ValueError(
                f"image_of_caption must have one entry for each of the {len(self.captions)} "
                f"captions, got shape {owners.shape}"
            )
        if owners.size and (owners.min() < 0 or owners.max() >= len(self.image_ids)):
            raise ValueError(
                f"image_of_caption must lie in 0..{len(self.image_ids) - 1}, "
                f"got {owners.min()}..{owners.max()}"
            )
        if (np.diff(owners) < 0).any():
            raise ValueError(
                "image_of_caption must not decrease: sort the captions by picture, so that the "
                "captions of one picture are consecutive"
            )

    @classmethod
    def gather(
        cls,
        name: str,
        split: str,
        image_ids: Sequence[str],
        captions: Sequence[Sequence[str]],
        *,
        read_image: Callable[[int], Picture] | None = None,
        image_paths: Sequence[Path] | None = None,
        read_features: Callable[[int], NDArray[np.floating]] | None = None,
    ) -> ImageTextData:
        """Build a split of the captions of each picture, read from `image_paths` if given."""
        if image_paths is not None and read_image is None:
            paths = list(image_paths)

            def read_image(index: int) -> Picture:
                return read_picture(paths[index])

        return cls(
            name=name,
            split=split,
            image_ids=list(image_ids),
            captions=[caption for own in captions for caption in own],
            image_of_caption=np.repeat(np.arange(len(captions)), [len(own) for own in captions]),
            read_image=read_image,
            image_paths=None if image_paths is None else list(image_paths),
            read_features=read_features,
        )

    def __len__(self) -> int:
        """Return the number of pictures, I."""
        return len(self.image_ids)

    def image(self, index: int) -> NDArray[np.uint8]:
        """Read picture `index`, uint8 (H, W, 3)."""
        self._check_index(index)
        if self.read_image is None:
            raise ValueError(
                f"{self.name}/{self.split} holds features of regions, not pictures: take an image "
                "encoder that reads regions, or data with picture files"
            )
        return self.read_image(index)

    def features(self, index: int) -> NDArray[np.float32]:
        """Read the region features of picture `index`, float32 (R, C)."""
        self._check_index(index)
        if self.read_features is None:
            raise ValueError(
                f"{self.name}/{self.split} holds pictures, not features of regions: take an image "
                "encoder that reads pixels, or data with precomputed regions"
            )
        features = np.asarray(self.read_features(index), dtype=np.float32)
        if not np.isfinite(features).all():
            raise ValueError(
                f"{self.name}/{self.split}: the features of picture {self.image_ids[index]} hold "
                "numbers that are not finite; are they written whole?"
            )
        return features

    @cached_property
    def feature_dim(self) -> int:
        """Channels C of the region features; 0 where there are none."""
        return self.features(0).shape[1] if self.read_features and len(self) else 0

    def _check_index(self, index: int) -> None:
        if not 0 <= index < len(self):
            raise IndexError(
                f"picture {index} asked for, {self.name}/{self.split} holds {len(self)}"
            )

    @cached_property
    def caption_offsets(self) -> NDArray[np.int64]:
        """Where each picture's captions begin, (I + 1,): those of i are [offsets[i], [i + 1])."""
        return np.searchsorted(self.image_of_caption, np.arange(len(self) + 1)).astype(np.int64)

    def captions_of(self, index: int) -> list[str]:
        """List the captions written about picture `index`."""
        begin, end = self.caption_offsets[index : index + 2]
        return self.captions[begin:end]

    @cached_property
    def relevance(self) -> NDArray[np.bool_] | None:
        """Every pair that fits, bool (I, T), or None when only the source pairs are known."""
        if self.oracle is None:
            return None
        relevance = self.oracle()
        if relevance.shape != (len(self), len(self.captions)):
            raise ValueError(
                f"the oracle of {self.name}/{self.split} must give one row a picture and one "
                f"column a caption, {(len(self), len(self.captions))}, got {relevance.shape}"
            )
        return relevance


def check_split(split: str) -> None:
    """Refuse a split that is not train, val or test."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
