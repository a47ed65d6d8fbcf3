"""One split of a data set, ready for a model: batches, and the features of frozen encoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from divse.data import Batch, Batches, ImageTextData
from divse.data.batching import Tokenizer
from divse.models import SetOutput, TwoTower
from divse.models.features import Local
from divse.models.slot_attention import length_mask
from divse.models.two_tower import Tower
from divse.sets import EmbeddingSets
from divse.training.config import Config
from divse.training.distributed import collected, processes, rank
from divse.training.feature_store import FeatureStore, image_features, text_features

EXTRACTION_BATCH = 8  # pictures at a time through a frozen encoder: fastest on a CPU
STATISTICS_ROWS = 8192  # enough to centre features


class Labels(NamedTuple):
    """Of I pictures and T captions, int64: equal numbers belong together.

    pictures: (I,)
    owners: (T,), the picture that each caption was written about
    texts: (T,), equal for captions that are equal; None if a caption fits its own picture alone
    """

    pictures: Tensor
    owners: Tensor
    texts: Tensor | None = None

    def positives(self) -> Tensor:
        """The position of each caption's picture (T,), or bool (I, T) if captions fit several."""
        if self.texts is None:
            order = self.pictures.argsort()
            return order[torch.searchsorted(self.pictures[order], self.owners)]
        own = self.pictures[:, None] == self.owners
        equal = self.texts[:, None] == self.texts
        return own.float() @ equal.float() > 0


@dataclass(frozen=True)
class Split:
    """Batches of one split; frozen encoders' features stand in for pixels and tokens.

    batches: with pixels, unless the image encoder is frozen
    image_stores: features of the pictures as they are and, in training, mirrored
    text_store: features of the captions
    same: captions that are equal word for word have the same number here, (T,)
    mask: token that stands for a hidden word; 0 where the tokenizer has none
    """

    batches: Batches
    image_stores: tuple[FeatureStore, ...] = ()
    text_store: FeatureStore | None = None
    same: NDArray[np.int64] | None = None
    mask: int = 0

    @classmethod
    def prepare(
        cls,
        data: ImageTextData,
        tokenizer: Tokenizer,
        model: TwoTower,
        config: Config,
        cache: Path,
    ) -> Split:
        """Tokenise the captions and run the frozen encoders, or open what they computed."""
        size = None if config.image.frozen else config.image.size
        settings = config.train.batch_size, size, config.train.seed
        augment = [] if config.image.frozen else config.data.augment
        crop_pct = config.image.crop_pct
        batches = Batches(data, tokenizer, *settings, augment, config.data.region_drop, crop_pct)
        images: tuple[FeatureStore, ...] = ()
        model.eval()
        if config.image.frozen:
            pictures = Batches(
                data, tokenizer, EXTRACTION_BATCH, config.image.size, crop_pct=crop_pct
            )
            mirror = "flip" in config.data.augment and data.split == "train"
            views = (False, True) if mirror else (False,)
            images = tuple(image_features(model.image, pictures, cache, v) for v in views)
        texts = text_features(model.text, batches, cache) if config.text.frozen else None
        same = None
        if config.data.equal_captions:
            same = np.unique(np.array(data.captions), return_inverse=True)[1]
        return cls(batches, images, texts, same, getattr(tokenizer, "mask", 0))

    @property
    def data(self) -> ImageTextData:
        """The pictures and captions."""
        return self.batches.data

    def embed(
        self, model: TwoTower, batch: Batch, epoch: int | None = None
    ) -> tuple[SetOutput, SetOutput]:
        """Sets of the pictures and captions of a batch, on the model's device.

        In training (`epoch` given) each picture is taken as it is or mirrored, where both are in
        store; which of them follows from seed, epoch and picture.
        """
        device = next(model.parameters()).device
        return self._images(model, batch, device, epoch), self._texts(model, batch, device)

    def _images(
        self, model: TwoTower, batch: Batch, device: torch.device, epoch: int | None
    ) -> SetOutput:
        if not self.image_stores:
            output: SetOutput = model.image(*(x.to(device) for x in batch.image_inputs))
            return output
        rows = batch.image_index.numpy()
        local = self.image_stores[0].take(rows, device)
        if epoch is not None and len(self.image_stores) > 1:
            draws = [np.random.default_rng([self.batches.seed, epoch, i]) for i in rows]
            mirrored = np.flatnonzero([draw.integers(2) for draw in draws])
            if len(mirrored):
                other = self.image_stores[1].take(rows[mirrored], device)
                local.values[torch.from_numpy(mirrored).to(device)] = other.values
        return model.image.embed(local)

    def _texts(self, model: TwoTower, batch: Batch, device: torch.device) -> SetOutput:
        if self.text_store is not None:
            return model.text.embed(self.text_store.take(batch.caption_index.numpy(), device))
        return model.texts(batch.tokens.to(device), batch.lengths.to(device))

    def labels(self, batch: Batch) -> Labels:
        """What tells which captions of a batch fit which of its pictures."""
        owners = batch.image_index[batch.image_of_caption]
        if self.same is None:
            return Labels(batch.image_index, owners)
        texts = torch.from_numpy(self.same)[batch.caption_index]
        return Labels(batch.image_index, owners, texts)

    @torch.no_grad()
    def encode(
        self, model: TwoTower, step: Callable[[int], object] | None = None
    ) -> tuple[EmbeddingSets, EmbeddingSets]:
        """Sets of all pictures and of all captions, in the order of the data, on the CPU.

        Every process encodes a part and has the whole in the end. `step` is told the number of
        pictures after each batch.
        """
        model.eval()
        parts = []
        for batch in self.batches.in_order(part=(rank(), processes())):
            outputs = self.embed(model, batch)
            places = (batch.image_index, batch.caption_index)
            parts.append((places, tuple(output.sets.cpu() for output in outputs)))
            if step is not None:
                step(len(batch.image_index))
        everywhere = [part for parts_of_one in collected(parts) for part in parts_of_one]
        sides = []
        for side in (0, 1):
            order = torch.cat([places[side] for places, _ in everywhere]).argsort()
            sides.append(EmbeddingSets(torch.cat([sets[side] for _, sets in everywhere])[order]))
        return sides[0], sides[1]

    def fit_statistics(self, model: TwoTower) -> None:
        """Fix the centre and scale of frozen encoders' global features by those of this split."""
        if self.image_stores:
            fit(model.image, self.image_stores[0])
        if self.text_store is not None:
            fit(model.text, self.text_store)


@torch.no_grad()
def fit(tower: Tower, store: FeatureStore, batch_size: int = 64) -> None:
    """Fit a tower's `standardize` to evenly spaced rows of a store."""
    if tower.standardize is None:
        return
    device = next(tower.parameters()).device
    count = min(len(store), STATISTICS_ROWS)
    rows = np.linspace(0, len(store) - 1, count).astype(np.int64)
    pooled = []
    for begin in range(0, count, batch_size):
        local = store.take(rows[begin : begin + batch_size], device)
        pooled.append(pooled_feature(tower, local))
    tower.standardize.fit(torch.cat(pooled))


def pooled_feature(tower: Tower, local: Local) -> Tensor:
    """Global feature (B, G) of local features, as the encoder gives it."""
    pooled: Tensor = tower.encoder(local, length_mask(local.lengths, local.values.shape[1])).pooled
    return pooled


def drop_words(
    batch: Batch, share: float, mask: int, vocabulary: int, seed: Sequence[int]
) -> Batch:
    """Touch each word with probability `share`, as the published recipe does.

    Half of those become the token `mask`, a tenth a random word (2 to `vocabulary` - 1), the rest
    is deleted. One word always stays. What happens to a caption follows from `seed` and caption.
    """
    tokens, lengths = batch.tokens, batch.lengths
    places = torch.arange(tokens.shape[1])
    draw, random = torch.ones(tokens.shape, dtype=torch.float64), torch.zeros_like(tokens)
    for row, (caption, length) in enumerate(
        zip(batch.caption_index.tolist(), lengths.tolist(), strict=True)
    ):
        rng = np.random.default_rng([*seed, caption])
        draw[row, :length] = torch.from_numpy(rng.random(length)) / share  # below 1: touched
        random[row, :length] = torch.from_numpy(rng.integers(2, vocabulary, length))
    changed = torch.where(draw < 0.5, mask, torch.where(draw < 0.6, random, tokens))
    keep = (places < lengths[:, None]) & ((draw < 0.6) | (draw >= 1))
    keep[:, 0] |= ~keep.any(dim=1)
    order = (~keep).to(torch.uint8).sort(dim=1, stable=True).indices  # kept words first
    lengths = keep.sum(dim=1)
    moved = changed.gather(1, order).masked_fill(places >= lengths[:, None], 0)
    return batch._replace(tokens=moved[:, : int(lengths.max())], lengths=lengths)
