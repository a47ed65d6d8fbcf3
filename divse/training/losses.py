"""Losses of a batch of pictures and all their captions (conventions of DivE, CVPR 2023).

Shapes: I pictures, T captions, K elements, D dimensions. Positives are the picture of each caption
(T,), or (I, T) bool where a caption fits several. On a GPU neither scores nor distances are ever
held (batch_scores.py), unless positives are a mask; on a CPU they are.

    total = ranking(scores) + mmd_weight * MMD + diversity_weight * diversity
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from divse.models import SetOutput
from divse.similarity import score, triton
from divse.similarity.inputs import Sets
from divse.similarity.table import get_similarity
from divse.training.batch_scores import DenseScores, Hardest, TiledScores, positive_mask
from divse.training.config import LossConfig

Scores = DenseScores | TiledScores


def _triplet(found: Hardest, margin: float) -> Tensor:
    to_text = margin + found.of_pictures - found.positives
    to_image = margin + found.of_captions - found.positives
    return to_text.clamp(min=0).mean() + to_image.clamp(min=0).mean()


def _soft(found: Hardest, temperature: float) -> Tensor:
    to_text = F.softplus((found.of_pictures - found.positives) / temperature)
    to_image = F.softplus((found.of_captions - found.positives) / temperature)
    return to_text.mean() + to_image.mean()


def triplet(batch: Scores, config: LossConfig) -> Tensor:
    """Hinge loss against the hardest negative, mean over positive pairs, both ways.

    Image to text: each caption of a picture is a positive of its own, against the hardest caption
    of another picture. Text to image: against the hardest other picture.
    """
    return _triplet(batch.hardest(), config.margin)


def soft_triplet(batch: Scores, config: LossConfig) -> Tensor:
    """Soft margin: log(1 + exp((hardest negative - positive) / temperature)), means as above."""
    return _soft(batch.hardest(), config.temperature)


def lse_triplet(batch: Scores, config: LossConfig) -> Tensor:
    """The triplet loss against a smooth maximum of all negatives: t * logsumexp(scores / t)."""
    return _triplet(batch.smoothest(config.temperature), config.margin)


def info_nce(batch: Scores, config: LossConfig) -> Tensor:
    """Cross-entropy of every positive pair against all candidates, mean over pairs, both ways.

    A picture's other captions do not count as negatives of a caption.
    """
    return _soft(batch.smoothest(config.temperature), config.temperature)


def info_nce_any(batch: Scores, config: LossConfig) -> Tensor:
    """Cross-entropy of finding any positive: -log of the probability that falls on positives.

    Unlike `info_nce` it lets a picture be found by its clearest caption alone.
    """
    odds = batch.log_odds(config.temperature)
    return F.softplus(odds.to_text).mean() + F.softplus(odds.to_image).mean()


_LOSSES = {
    "triplet": triplet,
    "soft_triplet": soft_triplet,
    "lse_triplet": lse_triplet,
    "info_nce": info_nce,
    "info_nce_any": info_nce_any,
}
LOSSES = list(_LOSSES)


def ranking_loss(name: str, batch: Scores, config: LossConfig) -> Tensor:
    """The loss called `name`."""
    return _LOSSES[name](batch, config)


def mmd(images: Tensor, texts: Tensor, impl: str = "auto") -> Tensor:
    """Maximum mean discrepancy of the elements of (I, K, D) and (T, K, D), RBF exp(-d / 2).

    d is the unsquared distance, as in the published code. With impl "triton", or "auto" on a GPU,
    no distance is ever held.
    """
    x, y = images.flatten(0, 1), texts.flatten(0, 1)
    kernel = _mean_kernel(x, y, impl)
    return kernel(x, x) - 2 * kernel(x, y) + kernel(y, y)


def _mean_kernel(x: Tensor, y: Tensor, impl: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return what computes the mean of the RBF kernel over all pairs of elements."""
    if impl == "triton" or (impl == "auto" and x.is_cuda):
        sides = Sets(x[:, None], None), Sets(y[:, None], None)
        # For distances the kernels have the limits that they have for pairs of sets.
        reason = triton.why_not("pairs", *sides, get_similarity("smooth_chamfer"))
        if reason is None:
            return triton.rbf_mean
        if impl == "triton":
            raise ValueError(f'impl="triton" cannot serve MMD: {reason}')
    return lambda a, b: torch.exp(-0.5 * torch.cdist(a, b)).mean()


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
    """The total, its unweighted parts, and text-to-image R@1 within the batch, all ().

    MMD is 0 where its weight is, and R@1 is NaN where it was not asked for.
    """

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
    recall: bool = True,
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
        recall: Find R@1, which a loss leaves behind.

    """
    name = name or config.name
    options = similarity_options(config) | dict(learned or {})
    batch = batch_scores(images.sets, texts.sets, positives, options, impl)
    ranking = ranking_loss(name, batch, config)
    discrepancy = ranking.new_zeros(())
    if config.mmd:
        discrepancy = mmd(images.sets, texts.sets, impl)
    spread = diversity(images.slots) + diversity(texts.slots)
    total = ranking + config.mmd * discrepancy + config.diversity * spread
    found = batch.recall() if recall else ranking.new_full((), float("nan"))
    return LossParts(total, ranking, discrepancy, spread, found)


def batch_scores(
    images: Tensor,
    texts: Tensor,
    positives: Tensor,
    options: Mapping[str, Any],
    impl: str,
) -> Scores:
    """Scores tile by tile where the Triton kernels serve, or else all of them."""
    sides = Sets(images, None), Sets(texts, None)
    similarity = get_similarity(options["similarity"])
    tiled = impl == "triton" or (impl == "auto" and images.is_cuda)
    if tiled and TiledScores.why_not(*sides, positives, similarity) is None:
        parameters = {k: v for k, v in options.items() if k != "similarity"}
        return TiledScores(*sides, positives, similarity, parameters)
    scores = score(images, texts, unit_norm=False, impl=impl, **options)
    return DenseScores(scores, positive_mask(positives, len(images)))


def similarity_options(config: LossConfig) -> dict[str, Any]:
    """Keyword arguments of divse.score for the similarity that a model is trained with."""
    if config.similarity != "smooth_chamfer":
        return {"similarity": config.similarity}
    return {"similarity": "smooth_chamfer", "alpha": config.alpha, "log_mean": config.log_mean}
