"""Is one model better than another? Intervals for the difference of two models.

`paired_bootstrap` asks about the *test set*: both models ranked the same queries; pictures are
drawn with replacement, each together with its captions (captions of one picture are not
independent). The ranks stay those among the full gallery. `seeds_interval` asks about *training*:
a t-interval over the paired differences of a few seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from divse.evaluation.retrieval import CUTOFFS, Ranks

Array = npt.NDArray[Any]


class Interval(NamedTuple):
    """An estimate with its confidence interval."""

    estimate: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        """Return the estimate and its interval, with signs and one decimal."""
        return f"{self.estimate:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


def paired_bootstrap(
    a: Ranks,
    b: Ranks,
    image_of_caption: Any,
    *,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Percentile intervals of model a minus model b, in points, for each R@K and ``rsum``.

    ``a`` and ``b`` are the ranks (`ranks`, `set_ranks`) of the same queries; -1 = not judged.
    """
    source = np.asarray(image_of_caption)
    _check(a, b, source, resamples, confidence)
    hits_a, judged = _per_picture(a, source)
    hits_b, _ = _per_picture(b, source)
    rng = np.random.default_rng(seed)
    images, chunk = len(judged), max(1, 4_000_000 // len(judged))
    draws = [
        _differences(_counts(rng, min(chunk, resamples - start), images), hits_a - hits_b, judged)
        for start in range(0, resamples, chunk)
    ]
    sampled = np.concatenate(draws)
    point = _differences(np.ones((1, images)), hits_a - hits_b, judged)[0]
    tail = 50.0 * (1.0 - confidence)
    low, high = np.nanpercentile(sampled, [tail, 100.0 - tail], axis=0)
    names = [f"{way}_r{cutoff}" for way in ("i2t", "t2i") for cutoff in CUTOFFS] + ["rsum"]
    return {
        name: Interval(float(p), float(lo), float(hi))
        for name, p, lo, hi in zip(names, point, low, high, strict=True)
    }


def seeds_interval(a: Sequence[float], b: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """Student t-interval of the mean of the paired differences a[i] - b[i], i = one seed."""
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(
            f"a and b must hold the same 2 or more seeds in the same order, got {len(a)} "
            f"and {len(b)}"
        )
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    n, mean = len(difference), float(difference.mean())
    half = student_t(n - 1, confidence) * float(difference.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)


def student_t(freedom: int, confidence: float) -> float:
    """Two-sided quantile t with P(|X| <= t) = confidence for ``freedom`` degrees (4.303 at 2)."""
    if freedom < 1 or not 0 < confidence < 1:
        raise ValueError(f"need freedom >= 1 and 0 < confidence < 1: {freedom}, {confidence}")
    low, high = 0.0, math.pi / 2  # bisection over the angle atan(t / sqrt(freedom))
    for _ in range(60):
        middle = (low + high) / 2
        if _within(middle, freedom) < confidence:
            low = middle
        else:
            high = middle
    return math.tan(low) * math.sqrt(freedom)


def _within(angle: float, freedom: int) -> float:
    """P(|X| <= t) of Student's t, t = sqrt(freedom) tan(angle); Abramowitz & Stegun 26.7.3-4."""
    cos, sin = math.cos(angle), math.sin(angle)
    odd = freedom % 2
    term = total = 0.0 if freedom == 1 else (cos if odd else 1.0)
    for n in range(3 if odd else 2, freedom - 1, 2):
        term *= cos * cos * (n - 1) / n
        total += term
    return (angle + sin * total) * 2 / math.pi if odd else sin * total


def _per_picture(ranks: Ranks, source: Array) -> tuple[Array, Array]:
    """Hits and judged queries of each picture, both (I, 6): 3 cutoffs i2t, 3 cutoffs t2i."""
    cutoffs = np.asarray(CUTOFFS)
    hits: list[Array] = []
    judged: list[Array] = []
    for rank, owner in ((ranks.i2t, np.arange(len(ranks.i2t))), (ranks.t2i, source)):
        valid = rank >= 0
        hit = valid[:, None] & (rank[:, None] < cutoffs)
        for rows, per_query in ((hits, hit), (judged, np.repeat(valid[:, None], 3, axis=1))):
            per_picture = np.zeros((len(ranks.i2t), 3))
            np.add.at(per_picture, owner, per_query)
            rows.append(per_picture)
    return np.concatenate(hits, axis=1), np.concatenate(judged, axis=1)


def _counts(rng: np.random.Generator, resamples: int, images: int) -> Array:
    """(resamples, I): how often each picture was drawn, I draws with replacement a resample."""
    drawn = rng.integers(0, images, (resamples, images))
    drawn += np.arange(resamples)[:, None] * images
    return np.bincount(drawn.ravel(), minlength=resamples * images).reshape(resamples, images)


def _differences(counts: Array, hits: Array, judged: Array) -> Array:
    """(resamples, 7) points: weighted hits over weighted queries, six recalls and their sum."""
    counts = counts.astype(np.float64)
    total = counts @ judged
    recall = np.divide(
        100.0 * (counts @ hits), total, out=np.full(total.shape, np.nan), where=total > 0
    )
    return np.concatenate([recall, recall.sum(1, keepdims=True)], axis=1)


def _check(a: Ranks, b: Ranks, source: Array, resamples: int, confidence: float) -> None:
    for way in ("i2t", "t2i"):
        first, second = getattr(a, way), getattr(b, way)
        if first.shape != second.shape or ((first < 0) != (second < 0)).any():
            raise ValueError(f"{way}: both models must have ranked the same queries of one set")
    if source.shape != a.t2i.shape or source.min() < 0 or source.max() >= len(a.i2t):
        raise ValueError(
            f"image_of_caption must name one of {len(a.i2t)} pictures for each of "
            f"{len(a.t2i)} captions, got shape {source.shape}"
        )
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(f"need resamples >= 1 and 0 < confidence < 1: {resamples}, {confidence}")
