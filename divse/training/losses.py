"""Losses of a batch of pictures and all their captions (conventions of DivE, CVPR 2023).

Shapes: I pictures, T captions, K elements, D dimensions. Positives are the picture of each caption
(T,), or (I, T) bool where a caption fits several. On a GPU, losses that ask for hardest negatives
alone never hold the scores (batch_scores.py); on a CPU all losses do.

    total = ranking(scores) + mmd_weight * MMD + diversity_weight * diversity
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from divse.models import SetOutput
from divse.similarity import score
from divse.similarity.dispatch import choose
from divse.similarity.inputs import Sets
from divse.similarity.table import get_similarity
from divse.training.batch_scores import DenseScores, Hardest, HardestScores, positive_mask
from divse.training.config import LossConfig


def _triplet(found: Hardest, margin: float) -> Tensor:
    to_text = margin + found.of_pictures - found.positives
    to_image = margin + found.of_captions - found.positives
    return to_text.clamp(min=0).mean() + to_image.clamp(min=0).mean()


def _soft(found: Hardest, temperature: float) -> Tensor:
    to_text = F.softplus((found.of_pictures - found.positives) / temperature)
    to_image = F.softplus((found.of_captions - found.positives) / temperature)
    return to_text.mean() + to_image.mean()


def triplet(batch: DenseScores | HardestScores, config: LossConfig) -> Tensor:
    """Hinge loss against the hardest negative, mean over positive pairs, both ways.

    Image to text: each caption of a picture is a positive of its own, against the hardest caption
    of another picture. Text to image: against the hardest other picture.
    """
    return _triplet(batch.hardest(), config.margin)


def soft_triplet(batch: DenseScores | HardestScores, config: LossConfig) -> Tensor:
    """Soft margin: log(1 + exp((hardest negative - positive) / temperature)), means as above."""
    return _soft(batch.hardest(), config.temperature)


def lse_triplet(batch: DenseScores, config: LossConfig) -> Tensor:
    """The triplet loss against a smooth maximum of all negatives: t * logsumexp(scores / t)."""
    return _triplet(batch.smoothest(config.temperature), config.margin)


def info_nce(batch: DenseScores, config: LossConfig) -> Tensor:
    """Cross-entropy of every positive pair against all candidates, mean over pairs, both ways.

    A picture's other captions do not count as negatives of a caption.
    """
    return _soft(batch.smoothest(config.temperature), config.temperature)


def info_nce_any(batch: DenseScores, config: LossConfig) -> Tensor:
    """Cross-entropy of finding any positive: -log of the probability that falls on positives.

    Unlike `info_nce` it lets a picture be found by its clearest caption alone.
    """
    logits = batch.scores / config.temperature
    right = logits.masked_fill(~batch.positives, float("-inf"))
    to_text = logits.logsumexp(dim=1) - right.logsumexp(dim=1)
    to_image = logits.logsumexp(dim=0) - right.logsumexp(dim=0)
    return to_text.mean() + to_image.mean()


#: Losses that only ask for hardest negatives, so that few pairs will do.
SPARSE = {"triplet": triplet, "soft_triplet": soft_triplet}
DENSE = {"lse_triplet": lse_triplet, "info_nce": info_nce, "info_nce_any": info_nce_any}
LOSSES = [*SPARSE, *DENSE]


def ranking_loss(name: str, batch: DenseScores | HardestScores, config: LossConfig) -> Tensor:
    """The loss called `name`."""
    if name in SPARSE:
        return SPARSE[name](batch, config)
    assert isinstance(batch, DenseScores), f"{name} needs all scores"
    return DENSE[name](batch, config)


def mmd(images: Tensor, texts: Tensor) -> Tensor:
    """Maximum mean discrepancy of the elements of (I, K, D) and (T, K, D), RBF exp(-d / 2).

    d is the unsquared distance, as in the published code.
    """
    x, y = images.flatten(0, 1), texts.flatten(0, 1)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-0.5 * torch.cdist(a, b)).mean()

    return kernel(x, x) - 2 * kernel(x, y) + kernel(y, y)


def diversity(slots: Tensor) -> Tensor:
    """Mean over samples and pairs i < j of exp(-2 |u_i - u_j|^2), u = normalised slots (B, K, D).

    Zero when K = 1: there is no pair.
    """
    k = slots.shape[1]
    if k == 1:
        return slots.new_zeros(())
    u = F.normalize(slots.float(), dim=-1)
    products = u @ u.mT  # (B, K, K)
    squares = products.diagonal(dim1=1, dim2=2)
    distances = squares[:, :, None] + squares[:, None, :] - 2 * products
    return torch.exp(-2 * distances).triu(1).sum() / (len(u) * (k * (k - 1) // 2))


class LossParts(NamedTuple):
    """The total, its unweighted parts, and text-to-image R@1 within the batch, all ()."""

    total: Tensor
    ranking: Tensor
    mmd: Tensor
    diversity: Tensor
    recall: Tensor


def set_loss(
    images: SetOutput,
    texts: SetOutput,
    positives: Tensor,
    config: LossConfig,
    *,
    name: str = "",
    impl: str = "auto",
    learned: Mapping[str, Tensor] | None = None,
) -> LossParts:
    """Loss of a batch.

    Args:
        images: Sets and slots of I pictures.
        texts: Sets and slots of T captions.
        positives: (T,), the picture that each caption was written about, or (I, T) bool.
        config: Loss, similarity and weights.
        name: A loss to take instead of the configured one (warm-up).
        impl: Implementation of the similarity.
        learned: Parameters of the similarity that the model learns.

    """
    name = name or config.name
    options = similarity_options(config) | dict(learned or {})
    batch = batch_scores(name, images.sets, texts.sets, positives, options, impl)
    ranking = ranking_loss(name, batch, config)
    discrepancy = mmd(images.sets, texts.sets)
    spread = diversity(images.slots) + diversity(texts.slots)
    total = ranking + config.mmd * discrepancy + config.diversity * spread
    return LossParts(total, ranking, discrepancy, spread, batch.recall())


def batch_scores(
    name: str,
    images: Tensor,
    texts: Tensor,
    positives: Tensor,
    options: Mapping[str, Any],
    impl: str,
) -> DenseScores | HardestScores:
    """Few scores where the loss and the implementation can do with them, or else all."""
    sides = Sets(images, None), Sets(texts, None)
    similarity = get_similarity(options["similarity"])
    few = name in SPARSE and choose("scores", impl, *sides, similarity).impl == "triton"
    if few and HardestScores.why_not(*sides, positives, similarity) is None:
        parameters = {k: v for k, v in options.items() if k != "similarity"}
        return HardestScores(*sides, positives, similarity, parameters)
    scores = score(images, texts, unit_norm=False, impl=impl, **options)
    return DenseScores(scores, positive_mask(positives, len(images)))


def similarity_options(config: LossConfig) -> dict[str, Any]:
    """Keyword arguments of divse.score for the similarity that a model is trained with."""
    if config.similarity != "smooth_chamfer":
        return {"similarity": config.similarity}
    return {"similarity": "smooth_chamfer", "alpha": config.alpha, "log_mean": config.log_mean}
