"""Intervals of figures and of differences of two models, and a test of the difference.

Pictures are the units: they are drawn with replacement, each together with all its queries, in
every figure of a protocol alike; the places stay those among the full gallery. The test of a
difference swaps the two models picture by picture: if they were equally good, any such swap would
have been as likely.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from divse.evaluation.figures import Figure, Part
from divse.evaluation.judgement import Array

CHUNK = 4_000_000  # draws at a time
Figures = Mapping[str, Figure]


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


class Difference(NamedTuple):
    """Model a minus model b, in points: an interval, and the p-value of the swap test."""

    interval: Interval
    p: float


def intervals(
    figures: Figures, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> dict[str, Interval]:
    """Percentile bootstrap intervals of figures of one model."""
    check(resamples, confidence)
    sums = _Sums.of(figures)
    drawn = sums.drawn(sums.values, resamples, seed)
    point = [figure.value for figure in figures.values()]
    return dict(zip(figures, between(np.array(point), drawn, confidence), strict=True))


def differences(
    a: Figures, b: Figures, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> dict[str, Difference]:
    """Paired bootstrap intervals and swap tests of the figures of model a minus model b."""
    check(resamples, confidence)
    first, second = _Sums.of(a), _Sums.of(b)
    if list(a) != list(b) or not first.asks_the_same(second):
        raise ValueError("both models must have answered the same queries of one ground truth")
    change = first.values - second.values
    point = np.array([a[name].value - b[name].value for name in a])
    drawn = first.drawn(change, resamples, seed)
    chances = first.swapped(change, resamples, seed + 1)
    found = between(point, drawn, confidence)
    return {
        name: Difference(interval, float(p))
        for name, interval, p in zip(a, found, chances, strict=True)
    }


def between(point: Array, drawn: Array, confidence: float) -> list[Interval]:
    """Percentile intervals of resampled figures (resamples, F) around their estimates (F,)."""
    tail = 50.0 * (1.0 - confidence)
    low, high = np.nanpercentile(drawn, [tail, 100.0 - tail], axis=0)
    return [
        Interval(float(p), float(lo), float(hi)) for p, lo, hi in zip(point, low, high, strict=True)
    ]


def check(resamples: int, confidence: float) -> None:
    """Refuse what cannot be drawn."""
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(f"need resamples >= 1 and 0 < confidence < 1: {resamples}, {confidence}")


class _Sums(NamedTuple):
    """Values of M parts summed by picture, (C, M), and F figures as their weighted means.

    values: sums of the values, judged: numbers of queries, both (C, M); weights: (M, F)
    """

    values: Array
    judged: Array
    weights: Array
    pictures: Array  # (C,)

    @classmethod
    def of(cls, figures: Figures) -> _Sums:
        parts: dict[int, Part] = {}
        for figure in figures.values():
            parts |= {id(part): part for part in figure.parts}
        pictures = np.unique(np.concatenate([part.pictures for part in parts.values()]))
        column = {key: number for number, key in enumerate(parts)}
        weights = np.zeros((len(parts), len(figures)))
        for number, figure in enumerate(figures.values()):
            for part, weight in zip(figure.parts, figure.weights, strict=True):
                weights[column[id(part)], number] += 100.0 * weight
        values, judged = np.zeros((2, len(pictures), len(parts)))
        for number, part in enumerate(parts.values()):
            owner = np.searchsorted(pictures, part.pictures)
            values[:, number] = np.bincount(owner, part.values, len(pictures))
            judged[:, number] = np.bincount(owner, minlength=len(pictures))
        return cls(values, judged, weights, pictures)

    def asks_the_same(self, other: _Sums) -> bool:
        return np.array_equal(self.pictures, other.pictures) and np.array_equal(
            self.judged, other.judged
        )

    def drawn(self, values: Array, resamples: int, seed: int) -> Array:
        """Figures of pictures drawn with replacement, (resamples, F)."""
        rng, units = np.random.default_rng(seed), len(self.pictures)
        step, rows = max(1, CHUNK // units), []
        for start in range(0, resamples, step):
            count = min(step, resamples - start)
            draw = rng.integers(0, units, (count, units)) + np.arange(count)[:, None] * units
            times = np.bincount(draw.ravel(), minlength=count * units).reshape(count, units)
            times = times.astype(np.float64)
            total = times @ self.judged
            empty = np.full(total.shape, np.nan)
            mean = np.divide(times @ values, total, out=empty, where=total > 0)
            rows.append(mean @ self.weights)
        return np.concatenate(rows)

    def swapped(self, change: Array, resamples: int, seed: int) -> Array:
        """Share of random swaps whose figures differ at least as much as was seen, (F,)."""
        each = (change / self.judged.sum(0)) @ self.weights  # (C, F): what each picture adds
        seen = np.abs(each.sum(0)) - 1e-9
        rng, units, hits = np.random.default_rng(seed), len(self.pictures), 0
        step = max(1, CHUNK // units)
        for start in range(0, resamples, step):
            count = min(step, resamples - start)
            sign = rng.integers(0, 2, (count, units), dtype=np.int8) * 2.0 - 1.0
            hits = hits + (np.abs(sign @ each) >= seen).sum(0)
        return np.asarray((1 + hits) / (1 + resamples))
