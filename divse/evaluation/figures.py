"""Figures of a ground truth: means over its queries, with what a bootstrap needs of them.

Every figure here (R@K, mAP@R, R-Precision, RSUM) is a weighted sum of means over queries, so one
`Part` a mean holds the value of each query and the picture it belongs to: pictures are drawn
together with their captions, which are not independent of one another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from divse.evaluation.judgement import Array, Judgement

RECALLS = ("r1", "r5", "r10")
FULL = ("map_at_r", "r_precision", "r1")


class Part(NamedTuple):
    """A mean over queries."""

    values: Array  # (Q,) float64, each within [0, 1]
    pictures: Array  # (Q,) int64, the picture that each query is or belongs to


class Figure(NamedTuple):
    """100 x the weighted sum of the means of its parts."""

    parts: tuple[Part, ...]
    weights: tuple[float, ...]

    @property
    def value(self) -> float:
        """The figure, in percent (or points)."""
        means = [float(part.values.mean()) for part in self.parts]
        return 100.0 * sum(w * mean for w, mean in zip(self.weights, means, strict=True))


def mean_of(parts: Sequence[Part]) -> Figure:
    """The mean of means: of one, of five folds, of three thresholds."""
    return Figure(tuple(parts), (1.0 / len(parts),) * len(parts))


def sum_of(figures: Sequence[Figure]) -> Figure:
    """The sum of figures, as RSUM is of six recalls."""
    parts = [part for figure in figures for part in figure.parts]
    return Figure(tuple(parts), tuple(w for figure in figures for w in figure.weights))


def measure(
    judgement: Judgement, ahead: Array, metrics: Sequence[str], pictures: Array
) -> dict[str, Part]:
    """Per-query values of metrics, from what `ranking.negatives_ahead` counted.

    metrics: rK (R@K), and map_at_r, r_precision where the judgement asked for every item
    pictures: (Q,), the picture of each query
    """
    best = ahead[judgement.offsets[:-1]] if judgement.every else ahead
    found = {}
    if "map_at_r" in metrics or "r_precision" in metrics:
        if not judgement.every:
            raise ValueError("mAP@R and R-Precision need the places of every fitting item")
        found = precisions(judgement, ahead)
    for metric in metrics:
        if metric not in found:
            found[metric] = (best < int(metric.removeprefix("r"))).astype(np.float64)
    return {metric: Part(found[metric], pictures) for metric in metrics}


def precisions(judgement: Judgement, ahead: Array) -> dict[str, Array]:
    """AP@R and R-Precision of each query, (Q,).

    R is the number of fitting items. R-Precision is their share among the first R places; AP@R is
    the mean over the first R places of the precision at each place that holds a fitting item.
    """
    begin, there, total = judgement.offsets[:-1], judgement.counts, judgement.sizes
    number = np.arange(1, len(ahead) + 1) - np.repeat(begin, there)  # items down to each one
    place = ahead + number
    hit = place <= np.repeat(total, there)
    return {
        "map_at_r": np.add.reduceat(np.where(hit, number / place, 0.0), begin) / total,
        "r_precision": np.add.reduceat(hit.astype(np.float64), begin) / total,
    }


def with_rsum(figures: Mapping[str, Figure]) -> dict[str, Figure]:
    """Figures, and RSUM if all six recalls between the modalities are among them."""
    six = [f"{way}_{recall}" for way in ("i2t", "t2i") for recall in RECALLS]
    if not all(name in figures for name in six):
        return dict(figures)
    return {**figures, "rsum": sum_of([figures[name] for name in six])}
