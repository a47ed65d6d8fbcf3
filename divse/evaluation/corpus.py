"""What is known of the pictures and captions that were embedded: whose captions, which ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from divse.evaluation.judgement import Array

PER_PICTURE = 5  # captions a picture in COCO and Flickr30K; the few that have more keep the first 5
FOLDS = 5


@dataclass(frozen=True, eq=False)
class Corpus:
    """A split in the order of its embeddings.

    image_of_caption: (T,) int64, the picture that each caption was written about
    relevance: (I, T) bool, every pair that fits, where that is known
    image_ids: (I,), caption_ids: (T,) integers, COCO's own, where ground truth goes by ids
    """

    name: str
    images: int
    image_of_caption: Array
    relevance: Array | None = None
    image_ids: Array | None = None
    caption_ids: Array | None = None

    def __post_init__(self) -> None:
        """Refuse owners, relevance and ids that do not fit one another."""
        owner = self.image_of_caption
        if owner.ndim != 1 or not len(owner) or owner.dtype.kind not in "iu":
            raise ValueError(
                f"image_of_caption must hold one integer a caption, got {owner.dtype} {owner.shape}"
            )
        if owner.min() < 0 or owner.max() >= self.images:
            raise ValueError(
                f"image_of_caption must lie in 0..{self.images - 1}, got "
                f"{owner.min()}..{owner.max()}"
            )
        self._check_relevance()
        for what, ids, expected in (
            ("image_ids", self.image_ids, self.images),
            ("caption_ids", self.caption_ids, self.captions),
        ):
            if ids is not None and (ids.shape != (expected,) or len(np.unique(ids)) != expected):
                raise ValueError(
                    f"{what} must be {expected} different ids, got {len(np.unique(ids))} in shape "
                    f"{ids.shape}"
                )

    def _check_relevance(self) -> None:
        fits = self.relevance
        if fits is None:
            return
        if fits.shape != (self.images, self.captions) or fits.dtype != np.bool_:
            raise ValueError(
                f"relevance must be bool ({self.images}, {self.captions}), pictures by captions; "
                f"got {fits.dtype} {fits.shape}"
            )
        if not fits.any():
            raise ValueError("relevance marks no pair at all: nothing can be measured")

    @property
    def captions(self) -> int:
        """T."""
        return len(self.image_of_caption)

    def first_captions(self, limit: int = PER_PICTURE) -> Array:
        """Positions of the first captions of each picture, as published figures take them."""
        order = np.argsort(self.image_of_caption, kind="stable")
        owner = self.image_of_caption[order]
        number = np.arange(len(owner)) - np.searchsorted(owner, owner)
        return np.sort(order[number < limit])

    def folds(self, count: int = FOLDS) -> list[tuple[Array, Array]]:
        """Consecutive folds of equally many pictures: (pictures, their captions) each."""
        if self.images % count or self.images < count:
            raise ValueError(
                f"{count} folds need a number of pictures that {count} divides, as 5000 of COCO's "
                f"test split; {self.name} has {self.images}"
            )
        size, captions = self.images // count, self.first_captions()
        fold = self.image_of_caption[captions] // size
        return [
            (np.arange(number * size, (number + 1) * size), captions[fold == number])
            for number in range(count)
        ]

    def places(self, kind: str, ids: Any) -> tuple[Array, Array]:
        """Positions of ids of "image" or "caption", and which ids are there at all (M,) bool."""
        held = self.image_ids if kind == "image" else self.caption_ids
        if held is None:
            raise ValueError(
                f"this ground truth names {kind}s by COCO's ids, and those of {self.name} are not "
                "known: give --karpathy dataset_coco.json, or --image-ids and --caption-ids"
            )
        order = np.argsort(held)
        wanted = np.asarray(ids, np.int64)
        near = np.minimum(np.searchsorted(held, wanted, sorter=order), len(held) - 1)
        there = held[order[near]] == wanted
        return order[near], there

    @property
    def size(self) -> str:
        """Pictures, in words: 5K for 5000."""
        return f"{self.images // 1000}K" if self.images % 1000 == 0 else f"{self.images}"
