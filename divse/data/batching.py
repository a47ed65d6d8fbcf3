"""Batches of whole pictures: every caption of a picture is in its batch.

The order of an epoch follows from (seed, epoch) alone, and a picture's augmentation from
(seed, epoch, picture), so a run that stops anywhere goes on with the very same batches.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from divse.data.augmentation import AUGMENTATIONS, CHANGES, VIEWS, drop_regions
from divse.data.dataset import ImageTextData
from divse.data.pictures import Picture, fit

CACHE_BYTES = 2**30  # resized pictures are kept in memory up to this size of a split
READERS = min(16, os.cpu_count() or 1)
Tokenizer = Callable[[Sequence[str]], tuple[Tensor, Tensor]]


@cache
def readers() -> ThreadPoolExecutor:
    """Threads that read and resize pictures, which Pillow does outside Python's lock."""
    return ThreadPoolExecutor(READERS, "pictures")


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=readers.cache_clear)  # threads do not survive a fork


class Batch(NamedTuple):
    """I pictures, as S x S pixels or R regions, and their T captions of at most L tokens.

    pixels: uint8 (I, 3, S, S), or None for data of regions and batches without pictures
    tokens: int64 (T, L), padded with 0
    lengths: int64 (T,)
    image_of_caption: int64 (T,), positions in this batch, 0 .. I - 1, non-decreasing
    image_index: int64 (I,), rows of the data set
    caption_index: int64 (T,), rows of the data set
    regions: float32 (I, R, C), padded with zeros, or None for data of pictures
    region_counts: int64 (I,), at least 1, or None
    """

    pixels: Tensor | None
    tokens: Tensor
    lengths: Tensor
    image_of_caption: Tensor
    image_index: Tensor
    caption_index: Tensor
    regions: Tensor | None = None
    region_counts: Tensor | None = None

    @property
    def image_inputs(self) -> tuple[Tensor, ...]:
        """What the image encoder reads: (pixels,) or (regions, region_counts)."""
        if self.pixels is not None:
            return (self.pixels,)
        if self.regions is None or self.region_counts is None:
            raise ValueError("this batch has no pictures: it was asked for with size=None")
        return self.regions, self.region_counts

    def to(self, device: torch.device | str) -> Batch:
        """Move every tensor to a device."""
        moved = (None if x is None else x.to(device, non_blocking=True) for x in self)
        return Batch(*moved)  # type: ignore[arg-type]


class Batches:
    """Cuts one split into batches.

    data: the split
    tokenizer: captions -> (ids (T, L), lengths (T,)); called once, on all captions
    batch_size: pictures a batch. In training the last few pictures of an epoch's order that do
        not fill a batch are left out of that epoch
    size: pictures become size x size; None = batches without pictures. Data of regions
        has its regions in every batch, whatever the size
    seed: of order and augmentation
    augment: names in AUGMENTATIONS, applied in this order (a view first), in training only
    region_drop: probability that a region is left out, in training only; one always stays
    crop_pct: how pictures that no view was cut from become square, as in pictures.fit
    """

    def __init__(
        self,
        data: ImageTextData,
        tokenizer: Tokenizer,
        batch_size: int,
        size: int | None,
        seed: int = 0,
        augment: Sequence[str] = (),
        region_drop: float = 0.0,
        crop_pct: float = 0.0,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1 picture, got {batch_size}")
        for name in augment:
            if name not in AUGMENTATIONS:
                raise ValueError(f"augment must be of {', '.join(AUGMENTATIONS)}, got {name!r}")
        if not 0 <= region_drop < 1:
            raise ValueError(f"region_drop must be at least 0 and below 1, got {region_drop}")
        if data.read_features is not None:
            size = None
        self.data, self.size, self.seed = data, size, seed
        self.region_drop, self.crop_pct = region_drop, crop_pct
        self.batch_size = min(batch_size, len(data))
        self.tokens, self.lengths = tokenizer(data.captions)
        self._views = [VIEWS[name] for name in augment if name in VIEWS]
        self._changes = [CHANGES[name] for name in augment if name in CHANGES]
        self._cached = np.zeros(len(data), dtype=bool)
        self._cache: NDArray[np.uint8] | None = None
        if size is not None and len(data) * size * size * 3 <= CACHE_BYTES:
            self._cache = np.empty((len(data), size, size, 3), dtype=np.uint8)

    def __len__(self) -> int:
        """Return the number of batches in a training epoch."""
        return len(self.data) // self.batch_size

    def epoch(self, epoch: int, start: int = 0, part: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
        """Yield the training batches of an epoch from batch `start` on.

        Of every batch only part (i, n) is read, the i-th of n runs of its pictures: n processes
        that each take one share the batch of a single one.
        """
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.data))
        for number in range(start, len(self)):
            chosen = order[number * self.batch_size : (number + 1) * self.batch_size]
            yield self._batch(np.array_split(chosen, part[1])[part[0]], epoch)

    def in_order(self, start: int = 0, part: tuple[int, int] = (0, 1)) -> Iterator[Batch]:
        """Yield pictures from `start` on, in the order of the data, without augmentation.

        Part (i, n) is every n-th batch, from batch i on.
        """
        first = start + part[0] * self.batch_size
        for begin in range(first, len(self.data), part[1] * self.batch_size):
            end = min(begin + self.batch_size, len(self.data))
            yield self._batch(np.arange(begin, end), None)

    def _batch(self, images: NDArray[np.int64], epoch: int | None) -> Batch:
        offsets = self.data.caption_offsets
        runs = [np.arange(offsets[i], offsets[i + 1]) for i in images]
        captions = torch.from_numpy(np.concatenate(runs))
        lengths = self.lengths[captions]
        owners = np.repeat(np.arange(len(images)), [len(run) for run in runs])
        regions, counts = self._regions(images, epoch) if self.data.read_features else (None, None)
        return Batch(
            pixels=None if self.size is None else self._pixels(images, epoch),
            tokens=self.tokens[captions, : int(lengths.max())],
            lengths=lengths,
            image_of_caption=torch.from_numpy(owners),
            image_index=torch.from_numpy(images),
            caption_index=captions,
            regions=regions,
            region_counts=counts,
        )

    def _pixels(self, images: NDArray[np.int64], epoch: int | None) -> Tensor:
        def view(index: int) -> Picture:
            return self._view(int(index), epoch)

        in_memory = self._cached[images].all() and (epoch is None or not self._views)
        pictures = list(map(view, images) if in_memory else readers().map(view, images))
        return torch.from_numpy(np.stack(pictures).transpose(0, 3, 1, 2).copy())

    def _view(self, index: int, epoch: int | None) -> Picture:
        """Picture `index` as S x S; in training (`epoch` given) with its random changes."""
        assert self.size is not None
        if epoch is None or not (self._views or self._changes):
            return self._picture(index)
        rng = np.random.default_rng([self.seed, epoch, index])
        if self._views:
            picture = self._views[0](self.data.image(index), self.size, rng)
        else:
            picture = self._picture(index)
        for change in self._changes:
            picture = change(picture, rng)
        return picture

    def _picture(self, index: int) -> Picture:
        assert self.size is not None
        if self._cache is None:
            return fit(self.data.image(index), self.size, self.crop_pct)
        if not self._cached[index]:
            self._cache[index] = fit(self.data.image(index), self.size, self.crop_pct)
            self._cached[index] = True
        picture: Picture = self._cache[index]
        return picture

    def _regions(self, images: NDArray[np.int64], epoch: int | None) -> tuple[Tensor, Tensor]:
        """Regions (I, R, C) of pictures, padded with zeros, and how many each has, (I,)."""
        rows = [self.data.features(int(i)) for i in images]
        if epoch is not None and self.region_drop:
            rows = [
                drop_regions(row, self.region_drop, np.random.default_rng([self.seed, epoch, i]))
                for row, i in zip(rows, images, strict=True)
            ]
        counts = np.array([len(row) for row in rows])
        padded = np.zeros((len(rows), counts.max(), rows[0].shape[1]), np.float32)
        for target, row in zip(padded, rows, strict=True):
            target[: len(row)] = row
        return torch.from_numpy(padded), torch.from_numpy(counts)
