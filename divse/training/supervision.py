"""The supervision that a trained model's loss gives to the elements of its sets, on a split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from divse.evaluation.supervision import Supervision, supervision
from divse.models import TwoTower
from divse.training.config import Config, LossConfig
from divse.training.losses import batch_scores, ranking_loss, similarity_options
from divse.training.split import Split


def ranking_supervision(
    images: Tensor,
    texts: Tensor,
    positives: Tensor,
    config: LossConfig,
    learned: Mapping[str, Tensor] | None = None,
) -> Supervision:
    """Shares of the ranking loss alone, of sets (I, K, D), (T, K, D) and positives (T,) or (I, T).

    `config` names loss and similarity; `learned` are the parameters that the similarity learned.
    """
    options = similarity_options(config) | dict(learned or {})

    def loss(pictures: Tensor, captions: Tensor) -> Tensor:
        scores = batch_scores(pictures, captions, positives, options, "auto")
        return ranking_loss(config.name, scores, config)

    return supervision(images, texts, loss)


def split_supervision(
    model: TwoTower, split: Split, config: Config, similarity: str | None = None
) -> Supervision:
    """Mean shares over the batches of a split, by the run's own loss or with another similarity.

    Another similarity takes its default parameters, on the same sets.
    """
    loss, learned = config.loss, model.similarity_parameters()
    if similarity is not None and similarity != loss.similarity:
        loss, learned = replace(loss, similarity=similarity), {}
    model.eval()
    found = []
    for batch in split.batches.in_order():
        with torch.no_grad():
            images, texts = split.embed(model, batch)
        positives = split.labels(batch).positives()
        found.append(ranking_supervision(images.sets, texts.sets, positives, loss, learned))
    return Supervision(*(torch.stack([f[side] for f in found]).nanmean(0) for side in (0, 1)))
