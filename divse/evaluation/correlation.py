"""Rank correlation of scores with people's ratings, resampled as CxC defines it.

One sample takes half of the queries without replacement and, for each, one of its rated items;
Spearman's correlation of ratings and scores is taken over these pairs. The figure is the mean of
1000 samples, given with their standard deviation (Parekh et al., EACL 2021, section 5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from divse.evaluation.judgement import Array
from divse.evaluation.ranking import Progress
from divse.evaluation.scores import Scores

SAMPLES = 1000


@dataclass(frozen=True, eq=False)
class Rated:
    """Rated pairs of one matrix of scores (i2t, i2i, t2t), all (M,).

    rows, columns: positions in the matrix; queries: what a pair is drawn for; ratings: floats
    """

    matrix: str
    rows: Array
    columns: Array
    queries: Array
    ratings: Array

    def __post_init__(self) -> None:
        """Refuse ratings that nothing can correlate with."""
        if len(np.unique(self.ratings)) < 2 or len(np.unique(self.queries)) < 4:
            raise ValueError(
                "rank correlations need two different ratings and four queries at least, got "
                f"{len(self.ratings)} rated pairs of {len(np.unique(self.queries))} queries"
            )


def correlations(
    rated: Mapping[str, Rated], matrices: Mapping[str, Scores], progress: Progress | None = None
) -> dict[str, Array]:
    """Spearman's correlation in each sample, (SAMPLES,), for each kind of rated pairs."""
    found = {}
    for name, pairs in rated.items():
        scores = matrices[pairs.matrix].pairs(pairs.rows, pairs.columns)
        found[name] = resampled(pairs.queries, pairs.ratings, scores)
        if progress is not None:
            progress("rank correlations", 1, len(rated))
    return found


def resampled(
    queries: Array, ratings: Array, scores: Array, samples: int = SAMPLES, seed: int = 0
) -> Array:
    """Spearman's correlation of half of the queries, one rated item each, (samples,)."""
    order = np.argsort(queries, kind="stable")
    begin = np.unique(queries[order], return_index=True)[1]
    count = np.diff(np.append(begin, len(queries)))
    codes = [np.unique(values[order], return_inverse=True)[1] for values in (ratings, scores)]
    rng = np.random.default_rng(seed)
    found = np.empty(samples)
    for sample in range(samples):
        half = rng.permutation(len(begin))[: len(begin) // 2]
        picked = begin[half] + (rng.random(len(half)) * count[half]).astype(np.int64)
        found[sample] = pearson(*(average_ranks(code[picked]) for code in codes))
    return found


def spearman(a: Array, b: Array) -> float:
    """Spearman's correlation, equal values sharing their mean rank; NaN if all are equal."""
    codes = (np.unique(values, return_inverse=True)[1] for values in (a, b))
    return pearson(*(average_ranks(code) for code in codes))


def average_ranks(codes: Array) -> Array:
    """Ranks of values given as whole numbers, equal ones sharing their mean rank."""
    times = np.bincount(codes)
    mean: Array = (np.cumsum(times) - (times - 1) / 2)[codes]
    return mean


def pearson(a: Array, b: Array) -> float:
    """Pearson's correlation; NaN where one side does not vary."""
    a, b = a - a.mean(), b - b.mean()
    spread = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / spread if spread else float("nan")
