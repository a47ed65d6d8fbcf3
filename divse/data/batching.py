"""Batches of whole pictures: every caption of a picture is in its batch.

The order of an epoch follows from (seed, epoch) alone, and a picture's augmentation from
(seed, epoch, picture), so a run that stops anywhere goes on with the very same batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from divse.data.dataset import ImageTextData
from divse.data.pictures import Picture, resize

CACHE_BYTES = 2**30  # resized pictures are kept in memory up to this size of a split
Tokenizer = Callable[[Sequence[str]], tuple[Tensor, Tensor]]
Augmentation = Callable[[Picture, np.random.Generator], Picture]


class Batch(NamedTuple):
    """I pictures of S x S pixels and their T captions of at most L tokens.

    pixels: uint8 (I, 3, S, S), or None when batches were asked for without pictures
    tokens: int64 (T, L), padded with 0
    lengths: int64 (T,)
    image_of_caption: int64 (T,), positions in this batch, 0 .. I - 1, non-decreasing
    image_index: int64 (I,), rows of the data set
    caption_index: int64 (T,), rows of the data set
    """

    pixels: Tensor | None
    tokens: Tensor
    lengths: Tensor
    image_of_caption: Tensor
    image_index: Tensor
    caption_index: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """Move every tensor to a device."""
        pixels, *rest = self
        moved = None if pixels is None else pixels.to(device, non_blocking=True)
        return Batch(moved, *(tensor.to(device, non_blocking=True) for tensor in rest))


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
    """Cut out a square of 36 to 100 % of the area and resize it. What it loses, captions may name.

    The range of scales is the paper's, for grid features.
    """
    side = picture.shape[0]
    part = max(1, round(side * float(np.sqrt(rng.uniform(0.36, 1.0)))))
    top, left = rng.integers(0, side - part + 1, size=2)
    return resize(np.ascontiguousarray(picture[top : top + part, left : left + part]), side)


# name -> augmentation of a resized picture (S, S, 3). None is on by default: only the owner of
# the captions knows which of them stay true ("left of" does not survive a flip).
AUGMENTATIONS: dict[str, Augmentation] = {"shift": shift, "flip": flip, "crop": crop}


class Batches:
    """Cuts one split into batches.

    data: the split
    tokenizer: captions -> (ids (T, L), lengths (T,)); called once, on all captions
    batch_size: pictures a batch. In training the last few pictures of an epoch's order that do
        not fill a batch are left out of that epoch
    size: pictures are resized to size x size; None = batches without pictures
    seed: of order and augmentation
    augment: names in AUGMENTATIONS, applied in this order, in training only
    """

    def __init__(
        self,
        data: ImageTextData,
        tokenizer: Tokenizer,
        batch_size: int,
        size: int | None,
        seed: int = 0,
        augment: Sequence[str] = (),
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1 picture, got {batch_size}")
        for name in augment:
            if name not in AUGMENTATIONS:
                raise ValueError(f"augment must be of {', '.join(AUGMENTATIONS)}, got {name!r}")
        self.data, self.size, self.seed = data, size, seed
        self.batch_size = min(batch_size, len(data))
        self.tokens, self.lengths = tokenizer(data.captions)
        self._augment = [AUGMENTATIONS[name] for name in augment]
        self._cached = np.zeros(len(data), dtype=bool)
        self._cache: NDArray[np.uint8] | None = None
        if size is not None and len(data) * size * size * 3 <= CACHE_BYTES:
            self._cache = np.empty((len(data), size, size, 3), dtype=np.uint8)

    def __len__(self) -> int:
        """Return the number of batches in a training epoch."""
        return len(self.data) // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the training batches of an epoch from batch `start` on."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.data))
        for number in range(start, len(self)):
            chosen = order[number * self.batch_size : (number + 1) * self.batch_size]
            yield self._batch(chosen, epoch)

    def in_order(self) -> Iterator[Batch]:
        """Yield every picture once, in the order of the data, without augmentation."""
        for begin in range(0, len(self.data), self.batch_size):
            end = min(begin + self.batch_size, len(self.data))
            yield self._batch(np.arange(begin, end), None)

    def _batch(self, images: NDArray[np.int64], epoch: int | None) -> Batch:
        offsets = self.data.caption_offsets
        runs = [np.arange(offsets[i], offsets[i + 1]) for i in images]
        captions = torch.from_numpy(np.concatenate(runs))
        lengths = self.lengths[captions]
        owners = np.repeat(np.arange(len(images)), [len(run) for run in runs])
        return Batch(
            pixels=None if self.size is None else self._pixels(images, epoch),
            tokens=self.tokens[captions, : int(lengths.max())],
            lengths=lengths,
            image_of_caption=torch.from_numpy(owners),
            image_index=torch.from_numpy(images),
            caption_index=captions,
        )

    def _pixels(self, images: NDArray[np.int64], epoch: int | None) -> Tensor:
        pictures = [self._picture(int(i)) for i in images]
        if epoch is not None and self._augment:
            pictures = [
                self._augmented(picture, int(i), epoch)
                for picture, i in zip(pictures, images, strict=True)
            ]
        return torch.from_numpy(np.stack(pictures).transpose(0, 3, 1, 2).copy())

    def _picture(self, index: int) -> Picture:
        assert self.size is not None
        if self._cache is None:
            return resize(self.data.image(index), self.size)
        if not self._cached[index]:
            self._cache[index] = resize(self.data.image(index), self.size)
            self._cached[index] = True
        picture: Picture = self._cache[index]
        return picture

    def _augmented(self, picture: Picture, index: int, epoch: int) -> Picture:
        rng = np.random.default_rng([self.seed, epoch, index])
        for augment in self._augment:
            picture = augment(picture, rng)
        return picture
