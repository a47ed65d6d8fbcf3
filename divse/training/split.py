"""One split of a data set, ready for a model: batches, and the features of frozen encoders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
from divse.training.feature_store import FeatureStore, image_features, text_features

EXTRACTION_BATCH = 8  # pictures at a time through a frozen encoder: fastest on a CPU
STATISTICS_ROWS = 8192  # enough to centre features


@dataclass(frozen=True)
class Split:
    """Batches of one split; frozen encoders' features stand in for pixels and tokens.

    batches: with pixels, unless the image encoder is frozen
    image_stores: features of the pictures as they are and, in training, mirrored
    text_store: features of the captions
    same: captions that are equal word for word have the same number here, (T,)
    """

    batches: Batches
    image_stores: tuple[FeatureStore, ...] = ()
    text_store: FeatureStore | None = None
    same: NDArray[np.int64] | None = None

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
        batches = Batches(data, tokenizer, *settings, augment)
        images: tuple[FeatureStore, ...] = ()
        model.eval()
        if config.image.frozen:
            pictures = Batches(data, tokenizer, EXTRACTION_BATCH, config.image.size)
            mirror = "flip" in config.data.augment and data.split == "train"
            views = (False, True) if mirror else (False,)
            images = tuple(image_features(model.image, pictures, cache, v) for v in views)
        texts = text_features(model.text, batches, cache) if config.text.frozen else None
        same = None
        if config.data.equal_captions:
            same = np.unique(np.array(data.captions), return_inverse=True)[1]
        return cls(batches, images, texts, same)

    @property
    def data(self) -> ImageTextData:
        """The pictures and captions."""
        return self.batches.data

    def embed(
        self, model: TwoTower, batch: Batch, rng: np.random.Generator | None = None
    ) -> tuple[SetOutput, SetOutput]:
        """Sets of the pictures and captions of a batch, on the model's device.

        Given an `rng`, each picture is taken as it is or mirrored, where both are in store.
        """
        device = next(model.parameters()).device
        return self._images(model, batch, device, rng), self._texts(model, batch, device)

    def _images(
        self,
        model: TwoTower,
        batch: Batch,
        device: torch.device,
        rng: np.random.Generator | None,
    ) -> SetOutput:
        if not self.image_stores:
            assert batch.pixels is not None
            return model.images(batch.pixels.to(device))
        rows = batch.image_index.numpy()
        local = self.image_stores[0].take(rows, device)
        if rng is not None and len(self.image_stores) > 1:
            mirrored = np.flatnonzero(rng.integers(2, size=len(rows)))
            other = self.image_stores[1].take(rows[mirrored], device)
            local.values[torch.from_numpy(mirrored).to(device)] = other.values
        return model.image.embed(local)

    def _texts(self, model: TwoTower, batch: Batch, device: torch.device) -> SetOutput:
        if self.text_store is not None:
            return model.text.embed(self.text_store.take(batch.caption_index.numpy(), device))
        return model.texts(batch.tokens.to(device), batch.lengths.to(device))

    def positives(self, batch: Batch) -> Tensor:
        """The picture of each caption (T,), or bool (I, T) where a caption may fit several."""
        if self.same is None:
            return batch.image_of_caption
        own = torch.arange(len(batch.image_index))[:, None] == batch.image_of_caption
        group = torch.from_numpy(self.same)[batch.caption_index]
        return own.float() @ (group[:, None] == group).float() > 0

    @torch.no_grad()
    def encode(self, model: TwoTower) -> tuple[EmbeddingSets, EmbeddingSets]:
        """Sets of all pictures and of all captions, in the order of the data, on the CPU."""
        model.eval()
        pairs = [self.embed(model, batch) for batch in self.batches.in_order()]
        images, texts = (
            EmbeddingSets(torch.cat([output.sets.cpu() for output in side]))
            for side in zip(*pairs, strict=True)
        )
        return images, texts

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


def drop_words(batch: Batch, share: float, vocabulary: int, rng: np.random.Generator) -> Batch:
    """Touch each word with probability `share`, as the published recipe does.

    Half of those become the unknown word (id 1), a tenth a random word, the rest is deleted. One
    word always stays.
    """
    tokens, lengths = batch.tokens, batch.lengths
    places = torch.arange(tokens.shape[1])
    draw = torch.from_numpy(rng.random(tokens.shape)) / share  # below 1: touched
    random = torch.from_numpy(rng.integers(2, vocabulary, tokens.shape))
    changed = torch.where(draw < 0.5, 1, torch.where(draw < 0.6, random, tokens))
    keep = (places < lengths[:, None]) & ((draw < 0.6) | (draw >= 1))
    keep[:, 0] |= ~keep.any(dim=1)
    order = (~keep).to(torch.uint8).sort(dim=1, stable=True).indices  # kept words first
    lengths = keep.sum(dim=1)
    moved = changed.gather(1, order).masked_fill(places >= lengths[:, None], 0)
    return batch._replace(tokens=moved[:, : int(lengths.max())], lengths=lengths)
