"""One update of the weights: embeddings of all processes, loss, gradients, AdamW, average."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from divse.data import Batch
from divse.models import SetOutput, TwoTower
from divse.models.weights import load_weights
from divse.training import checkpoint as files
from divse.training import distributed, gradient_cache
from divse.training.config import Config
from divse.training.losses import LossParts, set_loss
from divse.training.optim import (
    Average,
    Backbones,
    build_optimizer,
    schedule,
    set_learning_rate,
)
from divse.training.split import Labels, Split, drop_words


class Step:
    """Updates a model by one batch after the other.

    Args:
        model: On its device.
        config: All settings.
        train: Training split.

    """

    def __init__(self, model: TwoTower, config: Config, train: Split) -> None:
        self.model, self.config, self.train = model, config, train
        self.device = next(model.parameters()).device
        self.backbones = Backbones(model)
        self.optimizer = build_optimizer(model, config)
        self.average: Average | None = None
        if config.optim.ema:
            self.average = Average(model.trained_state(), config.optim.ema)

    def __call__(self, batch: Batch, epoch: int, step: int) -> LossParts:
        """Update the weights by this process's part of a batch, step `step` of `epoch`."""
        config, epoch_steps = self.config, len(self.train.batches)
        done = epoch * epoch_steps + step
        share = schedule(config.optim, done, epoch_steps, config.train.epochs)
        set_learning_rate(self.optimizer, share)
        self.optimizer.zero_grad(set_to_none=True)
        parts = self.backward(batch, epoch)
        distributed.average_gradients(self.model)
        if config.optim.clip:
            clip_grad_norm_(self.model.parameters(), config.optim.clip)
        self.optimizer.step()
        if self.average:
            self.average.update(self.model.trained_state(), done)
        return parts

    def backward(self, batch: Batch, epoch: int) -> LossParts:
        """Loss of the joined batch of all processes; its gradients, in `train.sub_batch` parts."""
        config = self.config
        if config.data.word_drop:
            vocabulary = int(self.train.batches.tokens.max()) + 1  # it is made of these captions
            seed = [config.train.seed, epoch]
            batch = drop_words(batch, config.data.word_drop, self.train.mask, vocabulary, seed)
        labels = (x.to(self.device) for x in self.train.labels(batch) if x is not None)
        positives = Labels(*distributed.gather(*labels)).positives()

        def embed(part: Batch) -> tuple[SetOutput, SetOutput]:
            bf16 = config.train.precision == "bf16"
            with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
                return self.train.embed(self.model, part, epoch)

        def loss(images: SetOutput, texts: SetOutput) -> LossParts:
            gathered = distributed.gather(*images, *texts)
            return set_loss(
                SetOutput(*gathered[:2]),
                SetOutput(*gathered[2:]),
                positives,
                config.loss,
                name="info_nce" if epoch < config.loss.warmup_epochs else "",
                impl=config.train.impl,
                learned=self.model.similarity_parameters(),
            )

        parts = gradient_cache.cut(batch, config.train.sub_batch)
        return gradient_cache.backward(self.model, parts, embed, loss)

    def state(self) -> dict[str, Tensor]:
        """Weights, optimiser and average as named tensors."""
        return {
            **files.with_prefix("model", self.model.trained_state()),
            **files.with_prefix("optimizer", files.optimizer_tensors(self.optimizer)),
            **files.with_prefix("average", self.average.tensors if self.average else {}),
        }

    def load(self, tensors: Mapping[str, Tensor], where: Path) -> None:
        """Take up what `state` gave; `where` it was read, for errors to name."""
        weights = {**self.model.frozen_state(), **files.below("model", tensors)}
        load_weights(self.model, weights, where)
        files.load_optimizer(self.optimizer, files.below("optimizer", tensors))
        if self.average:
            kept = files.below("average", tensors)
            self.average.tensors = {name: t.to(self.device) for name, t in kept.items()}
