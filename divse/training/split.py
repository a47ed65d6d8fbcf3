"""One split of a data set, ready for a model: batches, and the features of frozen encoders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from divse.data import Batch, Batches, ImageTextData
from divse.data.batching import Tokenizer
from divse.models import SetOutput, TwoTower
from divse.sets import EmbeddingSets
from divse.training.config import Config
from divse.training.feature_store import FeatureStore, image_features, text_features


@dataclass(frozen=True)
class Split:
    """Batches of one split; frozen encoders' features stand in for pixels and tokens."""

    batches: Batches
    image_store: FeatureStore | None = None
    text_store: FeatureStore | None = None

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
        size, batch_size = config.image.size, config.train.batch_size
        frozen = config.image.frozen
        batches = Batches(
            data,
            tokenizer,
            batch_size,
            None if frozen else size,
            config.train.seed,
            config.data.augment,
        )
        images = texts = None
        if config.image.frozen or config.text.frozen:
            cache.mkdir(parents=True, exist_ok=True)
            model.eval()
        if frozen:
            images = image_features(model.image, Batches(data, tokenizer, 32, size), cache)
        if config.text.frozen:
            texts = text_features(model.text, batches, cache)
        return cls(batches, images, texts)

    @property
    def data(self) -> ImageTextData:
        """The pictures and captions."""
        return self.batches.data

    def embed(self, model: TwoTower, batch: Batch) -> tuple[SetOutput, SetOutput]:
        """Sets of the pictures and of the captions of a batch, on the model's device."""
        device = next(model.parameters()).device
        return self._images(model, batch, device), self._texts(model, batch, device)

    def _images(self, model: TwoTower, batch: Batch, device: torch.device) -> SetOutput:
        if self.image_store is not None:
            return model.image.embed(self.image_store.take(batch.image_index.numpy(), device))
        assert batch.pixels is not None
        return model.images(batch.pixels.to(device))

    def _texts(self, model: TwoTower, batch: Batch, device: torch.device) -> SetOutput:
        if self.text_store is not None:
            return model.text.embed(self.text_store.take(batch.caption_index.numpy(), device))
        return model.texts(batch.tokens.to(device), batch.lengths.to(device))

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


def drop_words(batch: Batch, share: float, vocabulary: int, rng: np.random.Generator) -> Batch:
    """Touch each word with probability `share`: half of those become the unknown word (id 1), a
    tenth a random word, the rest is deleted (the published recipe). One word always stays.
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


def positives(batch: Batch) -> Tensor:
    """Which captions were written about which picture of the batch, bool (I, T)."""
    return torch.arange(len(batch.image_index))[:, None] == batch.image_of_caption
