"""Is one model better than another? Intervals for the difference of two models.

`paired_bootstrap` asks about the *test set*: both models ranked the same queries; pictures are
drawn with replacement, each together with its captions (captions of one picture are not
independent). The ranks stay those among the full gallery. seeds.py asks about *training*.
"""

from __future__ import annotations

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
