"""Losses of a batch of pictures and all their captions (conventions of DivE, CVPR 2023).

Shapes: I pictures, T captions, K elements, D dimensions; positives (I, T) bool.

    total = ranking(scores) + mmd_weight * MMD + diversity_weight * diversity
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from divse.models import SetOutput
from divse.similarity import score
from divse.training.config import LossConfig


def triplet(scores: Tensor, positives: Tensor, config: LossConfig) -> Tensor:
    """Hinge loss against the hardest negative, mean over positive pairs, both ways.

    Image to text: each caption of a picture is a positive of its own, against the hardest caption
    of another picture. Text to image: against the hardest other picture.
    """
    negatives = scores.masked_fill(positives, float("-inf"))
    pairs = scores[positives]  # (P,)
    rows, columns = positives.nonzero(as_tuple=True)
    to_text = config.margin + negatives.amax(dim=1)[rows] - pairs
    to_image = config.margin + negatives.amax(dim=0)[columns] - pairs
    return to_text.clamp(min=0).mean() + to_image.clamp(min=0).mean()


def info_nce(scores: Tensor, positives: Tensor, config: LossConfig) -> Tensor:
    """Cross-entropy of every positive pair against all candidates, mean over pairs, both ways.

    A picture's other captions do not count as negatives of a caption.
    """
    logits = scores / config.temperature
    pairs = logits[positives]  # (P,)
    rows, columns = positives.nonzero(as_tuple=True)
    negatives = logits.masked_fill(positives, float("-inf"))
    to_text = F.softplus(negatives.logsumexp(dim=1)[rows] - pairs)
    to_image = F.softplus(negatives.logsumexp(dim=0)[columns] - pairs)
    return to_text.mean() + to_image.mean()


def info_nce_any(scores: Tensor, positives: Tensor, config: LossConfig) -> Tensor:
    """Cross-entropy of finding any positive: -log of the probability that falls on positives.

    Unlike `info_nce` it lets a picture be found by its clearest caption alone.
    """
    logits = scores / config.temperature
    right = logits.masked_fill(~positives, float("-inf"))
    to_text = logits.logsumexp(dim=1) - right.logsumexp(dim=1)
    to_image = logits.logsumexp(dim=0) - right.logsumexp(dim=0)
    return to_text.mean() + to_image.mean()


LOSSES = {
    "triplet": triplet,
    "info_nce": info_nce,
    "info_nce_any": info_nce_any,
}


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
    i, j = torch.triu_indices(k, k, offset=1, device=slots.device)
    return torch.exp(-2 * (u[:, i] - u[:, j]).square().sum(dim=2)).mean()


class LossParts(NamedTuple):
    """The total, its unweighted parts, and the score matrix (I, T) of the batch."""

    total: Tensor
    ranking: Tensor
    mmd: Tensor
    diversity: Tensor
    scores: Tensor


def set_loss(
    images: SetOutput,
    texts: SetOutput,
    positives: Tensor,
    config: LossConfig,
    *,
    name: str = "",
    impl: str = "auto",
) -> LossParts:
    """Loss of a batch.

    Args:
        images: Sets and slots of I pictures.
        texts: Sets and slots of T captions.
        positives: (I, T), which caption was written about which picture.
        config: Loss, similarity and weights.
        name: A loss to take instead of the configured one (warm-up).
        impl: Implementation of divse.score.

    """
    scores = score(
        images.sets,
        texts.sets,
        unit_norm=False,
        impl=impl,
        **similarity_options(config),
    )
    ranking = LOSSES[name or config.name](scores, positives, config)
    discrepancy = mmd(images.sets, texts.sets)
    spread = diversity(images.slots) + diversity(texts.slots)
    total = ranking + config.mmd * discrepancy + config.diversity * spread
    return LossParts(total, ranking, discrepancy, spread, scores)


def similarity_options(config: LossConfig) -> dict[str, Any]:
    """Keyword arguments of divse.score for the similarity that a model is trained with."""
    if config.similarity != "smooth_chamfer":
        return {"similarity": config.similarity}
    return {"similarity": "smooth_chamfer", "alpha": config.alpha, "log_mean": config.log_mean}
