"""Several trainings of a model, one a seed: how their runs are called, and what they resolve.

A run of a model is called MODEL-SEED (`run_name`, `model_name`). All intervals are Student's:
`mean_interval` of one model, `seeds_interval` of the difference of two. `compare` sets many models
against one reference, for which every seed is a block: what it does to all models alike cancels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from divse.evaluation.judgement import Array
from divse.evaluation.resampling import Interval


def run_name(model: str, seed: int) -> str:
    """Name of the run of a model with a seed."""
    return f"{model}-{seed}"


def model_name(run: str, seed: int) -> str:
    """Name of the model of a run: its own without the seed, if that is where it ends."""
    return run.removesuffix(f"-{seed}")


def mean_interval(values: Sequence[float] | Array, *, confidence: float = 0.95) -> Interval:
    """Mean of one or more runs with its t-interval; of a single run the value alone."""
    runs = np.asarray(values, np.float64)
    if runs.ndim != 1 or not len(runs):
        raise ValueError(f"values must hold a figure of 1 or more runs, got shape {runs.shape}")
    n, mean = len(runs), float(runs.mean())
    if n == 1:
        return Interval(mean, mean, mean)
    half = student_t(n - 1, confidence) * float(runs.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)


def seeds_interval(a: Sequence[float], b: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """Student t-interval of the mean of the paired differences a[i] - b[i], i = one seed."""
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(
            f"a and b must hold the same 2 or more seeds in the same order, got {len(a)} "
            f"and {len(b)}"
        )
    return mean_interval(np.subtract(a, b, dtype=np.float64), confidence=confidence)


class Comparison(NamedTuple):
    """A model minus the reference: the interval of this difference alone, and p after Holm."""

    interval: Interval
    p: float
    resolved: bool


def compare(
    figures: Mapping[str, Mapping[str, float]], reference: str, *, confidence: float = 0.95
) -> dict[str, Comparison]:
    """Compare models {name: {seed: figure}} with one of them, over the seeds that they share.

    Least squares of model + seed. The scatter that is left is taken to be the same for all models,
    so that it is estimated from all their runs: few seeds of one model tell little of it. With one
    model and the reference this is the paired t-test. p is corrected by Holm for the number of
    models compared; a difference is resolved where it is below 1 - confidence. Models with fewer
    than two seeds of the reference are not compared.
    """
    seeds = sorted(figures[reference])
    kept = {name: [seed for seed in seeds if seed in mine] for name, mine in figures.items()}
    others = [name for name in figures if name != reference and len(kept[name]) > 1]
    if not others:
        return {}
    cells = [
        (model, seeds.index(seed), figures[name][seed])
        for model, name in enumerate([reference, *others])
        for seed in kept[name]
    ]
    model, block, value = map(np.array, zip(*cells, strict=True))
    columns = np.concatenate([np.eye(len(seeds))[block], np.eye(len(others) + 1)[model, 1:]], 1)
    freedom = len(cells) - columns.shape[1]
    found = np.linalg.lstsq(columns, value, rcond=None)[0]
    scatter = float(((value - columns @ found) ** 2).sum()) / freedom
    spread = scatter * np.linalg.inv(columns.T @ columns).diagonal()
    gaps, errors = found[len(seeds) :], np.sqrt(spread[len(seeds) :])
    half = student_t(freedom, confidence) * errors
    chances = holm([p_value(g, e, freedom) for g, e in zip(gaps, errors, strict=True)])
    return {
        name: Comparison(Interval(float(g), float(g - h), float(g + h)), p, p < 1 - confidence)
        for name, g, h, p in zip(others, gaps, half, chances, strict=True)
    }


def holm(chances: Sequence[float]) -> list[float]:
    """Correct p-values for their number, Holm's way: as they rise, times how many are left."""
    order = np.argsort(chances, kind="stable")
    left = np.arange(len(order), 0, -1)
    rising = np.maximum.accumulate(np.asarray(chances, np.float64)[order] * left)
    found = np.empty(len(order))
    found[order] = np.minimum(rising, 1.0)
    return [float(p) for p in found]


def p_value(estimate: float, error: float, freedom: int) -> float:
    """Two-sided p of an estimate with a standard error, by Student's t."""
    inside = _within(math.atan2(abs(estimate), error * math.sqrt(freedom)), freedom)
    return max(0.0, 1.0 - inside)


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
