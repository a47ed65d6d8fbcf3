"""Is one model better than another? Intervals for the difference of two models.

`paired_bootstrap` asks about the *test set*: both models ranked the same queries; pictures are
drawn with replacement, each together with its captions (captions of one picture are not
independent). The ranks stay those among the full gallery. `seeds_interval` asks about *training*:
a t-interval over the paired differences of a few seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from divse.evaluation.figures import Figure, Part, mean_of, with_rsum
from divse.evaluation.judgement import Array
from divse.evaluation.resampling import Interval, differences
from divse.evaluation.retrieval import CUTOFFS, Ranks


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
    _check(a, b, source)
    found = differences(
        _figures(a, source),
        _figures(b, source),
        resamples=resamples,
        confidence=confidence,
        seed=seed,
    )
    return {name: difference.interval for name, difference in found.items()}


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


def _figures(ranks: Ranks, source: Array) -> dict[str, Figure]:
    """Recalls of both ways and their sum, of the queries that are judged."""
    found = {}
    for way, rank, owner in (
        ("i2t", ranks.i2t, np.arange(len(ranks.i2t))),
        ("t2i", ranks.t2i, source),
    ):
        judged = rank >= 0
        for cutoff in CUTOFFS:
            part = Part((rank[judged] < cutoff).astype(np.float64), owner[judged])
            found[f"{way}_r{cutoff}"] = mean_of([part])
    return with_rsum(found)


def _check(a: Ranks, b: Ranks, source: Array) -> None:
    for way in ("i2t", "t2i"):
        first, second = getattr(a, way), getattr(b, way)
        if first.shape != second.shape or ((first < 0) != (second < 0)).any():
            raise ValueError(f"{way}: both models must have ranked the same queries of one set")
    if source.shape != a.t2i.shape or source.min() < 0 or source.max() >= len(a.i2t):
        raise ValueError(
            f"image_of_caption must name one of {len(a.i2t)} pictures for each of "
            f"{len(a.t2i)} captions, got shape {source.shape}"
        )
