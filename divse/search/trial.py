"""Queries with their exact answers, by which plans and settings are measured.

Queries are the caller's, or drawn from the gallery, as many of each kind:

    moved  a set whose elements are moved by noise half as long as they are
    mixed  elements of as many different sets, shuffled among those that were drawn, moved by noise
           as long as they are

Sets that gave elements to a query are left out of its answers, as a query is rarely in the gallery.
Moved queries lie where the gallery's sets do: what is near to one of their elements is often near
to the others. No set is near to all elements of a mixed one: its best sets are hardly better than
many others. Which kind takes more depth depends on the gallery. Captions that were searched for
among pictures took a little more than sets that are mixed with half the noise, so the noise is
longer: the axes of an index are the gallery's, and what a query has beside them blurs it.

A mean over few queries is uncertain: `Outcome.lower_bound` says what it is worth.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from divse.search.gallery import Gallery
from divse.search.index_spec import is_sketch
from divse.search.plans import Asked
from divse.search.reports import SearchReport
from divse.search.scan import Scoring
from divse.search.searcher import Searcher
from divse.sets import EmbeddingSets

MOVED, MIXED = 0.5, 1.0  # the noise's length, times an element's
TIMED = 16  # queries searched for one after another
CONFIDENCE = 0.95
ONE_SIDED = 1.645  # standard errors: a mean is less far above its expectation in as many cases
ROUNDING = 1e-6  # scores so near to the k-th best count as found: they may change places


class Sample(NamedTuple):
    """Queries (B, K, D) of one kind; `own` (B, any) are positions of sets that do not count."""

    kind: str
    queries: EmbeddingSets
    own: np.ndarray | None = None


class Filters(NamedTuple):
    """What may be found; see `Searcher.search`."""

    where: str | None = None
    allowed: Iterable[Any] | None = None


@dataclass(frozen=True)
class Outcome:
    """What a plan found: for each query the share (B,) of the topk best, and a report, by kind.

    `missed` is how many of the topk a query may miss that no query of the sample is like.
    """

    shares: dict[str, np.ndarray]
    reports: list[SearchReport]
    topk: int
    missed: int

    @property
    def recalls(self) -> dict[str, float]:
        """The mean share of each kind."""
        return {kind: float(share.mean()) for kind, share in self.shares.items()}

    @property
    def recall(self) -> float:
        """The mean share of the kind that has the smallest."""
        return min(self.recalls.values())

    @property
    def lower_bound(self) -> float:
        """What the mean share of all queries of a kind reaches with 95 % confidence, the least.

        Scans find what they find whatever is asked.
        """
        if any(report.plan != "prefilter" for report in self.reports):
            return self.recall
        bounds = [lower_bound(each, self.topk, self.missed) for each in self.shares.values()]
        return min(bounds)


def drawn(gallery: Gallery, count: int, seed: int = 0) -> list[Sample]:
    """Draw `count` sets of a gallery and make as many queries of each kind of them."""
    random = np.random.default_rng(seed)
    own = np.sort(random.choice(len(gallery), min(count, len(gallery)), replace=False))
    sets = gallery.sets(own)
    rows = _shuffled(sets, random)
    values = np.asarray(sets.values, dtype=np.float32)
    mixed = np.take_along_axis(values, rows[..., None], axis=0)
    return [
        Sample("moved", _noisy(values, MOVED, sets.lengths, random), own[:, None]),
        Sample("mixed", _noisy(mixed, MIXED, sets.lengths, random), own[rows]),
    ]


def _shuffled(sets: EmbeddingSets, random: np.random.Generator) -> np.ndarray:
    """For each element (n, K) the row of the set that it is taken from, at the same place."""
    order = random.permutation(len(sets))
    lengths = np.full(len(sets), sets.k) if sets.lengths is None else np.asarray(sets.lengths)
    rows = np.tile(np.arange(len(sets))[:, None], sets.k)
    for place in range(sets.k):
        longer = order[lengths[order] > place]
        rows[longer, place] = np.roll(longer, place)  # by another number at each place
    return rows


def _noisy(
    values: np.ndarray, length: float, lengths: Any, random: np.random.Generator
) -> EmbeddingSets:
    noise = random.standard_normal(values.shape, dtype=np.float32)
    noise *= length / np.linalg.norm(noise, axis=-1, keepdims=True)
    return EmbeddingSets.of(values + noise, lengths)


class Trial:
    """Searches for the same queries by any plan, and compares with the exact answers."""

    def __init__(
        self,
        searcher: Searcher,
        samples: list[Sample],
        scoring: Scoring,
        topk: int,
        filters: Filters = Filters(),  # noqa: B008  (a tuple)
    ) -> None:
        self.searcher, self.samples, self.scoring = searcher, samples, scoring
        self.topk = min(topk, len(searcher.gallery))
        self._filters = filters
        self._truth = [self._scores(sample, "exact", None, None) for sample in samples]
        self.topk = self._truth[0].shape[1]
        if not self.topk:
            raise ValueError("no set passes the filter: there is nothing to find")

    @property
    def queries(self) -> int:
        """Queries of all kinds."""
        return sum(len(sample.queries) for sample in self.samples)

    @property
    def sampled(self) -> bool:
        """Whether the queries were drawn from the gallery."""
        return self.samples[0].own is not None

    def search(self, plan: str, depth: int | None = None, probe: int | None = None) -> Outcome:
        """Search for all queries of each kind together."""
        shares, reports = {}, []
        for sample, truth in zip(self.samples, self._truth, strict=True):
            shares[sample.kind] = found_share(truth, self._scores(sample, plan, depth, probe))
            assert self.searcher.last is not None, "there was a search"
            reports.append(self.searcher.last)
        return Outcome(shares, reports, self.topk, self._missed(plan, probe))

    def _missed(self, plan: str, probe: int | None) -> int:
        """Who looks too shallow misses one here and there; who sees too few clusters, many."""
        index = self.searcher.index
        if plan != "prefilter" or index is None or index.lists == 1:
            return 1
        everywhere = is_sketch(index.spec) if probe is None else probe >= index.lists
        return 1 if everywhere else -(-self.topk // 2)

    def milliseconds(self, plan: str, depth: int | None = None, probe: int | None = None) -> float:
        """Return the median time of a query on its own, as many of each kind."""
        asked, spent = Asked(plan, depth, probe, self.topk, self.scoring), []
        for sample in self.samples:
            for row in range(min(TIMED // len(self.samples), len(sample.queries))):
                started = perf_counter()
                self.searcher.find(sample.queries[row], asked, *self._filters)
                spent.append(1e3 * (perf_counter() - started))
        return statistics.median(spent)

    def _scores(
        self, sample: Sample, plan: str, depth: int | None, probe: int | None
    ) -> np.ndarray:
        """Scores (B, topk) of what is found, best first; -inf where too few sets count."""
        own = np.empty((len(sample.queries), 0)) if sample.own is None else sample.own
        count = min(self.topk + own.shape[1], len(self.searcher.gallery))
        asked = Asked(plan, depth, probe, count, self.scoring)
        found = self.searcher.find(sample.queries, asked, *self._filters)
        out = (found.positions[:, :, None] == own[:, None, :]).any(axis=2)
        return -np.sort(-np.where(out, -np.inf, found.scores), axis=1)[:, : self.topk]


def lower_bound(shares: np.ndarray, topk: int, missed: int = 1) -> float:
    """Return the one-sided 95 % confidence bound of a mean, of a sample (B,) of its shares of topk.

    Most queries find all and few find much less, so the normal bound would hold too rarely:
    Johnson's correction for skewness (1978) lowers it. Nor is it above what a sample would tell in
    which every query finds all: so many others may still miss `missed` of the best.
    """
    size, mean = len(shares), shares.mean()
    none_missed = 1 - (1 - (1 - CONFIDENCE) ** (1 / size)) * missed / topk
    apart = shares - mean
    variance = np.square(apart).mean()
    error = np.sqrt(variance / max(1, size - 1))
    skewed = (apart**3).mean() / (6 * variance * size) * (1 + 2 * ONE_SIDED**2) if variance else 0.0
    return float(np.clip(mean - ONE_SIDED * error + skewed, 0, min(mean, none_missed)))


def found_share(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the share (B,) of the best sets, of scores `truth` (B, topk), that `scores` has."""
    counts = np.isfinite(truth).sum(axis=1)
    worst = np.take_along_axis(truth, np.maximum(counts - 1, 0)[:, None], axis=1) - ROUNDING
    found = (np.isfinite(scores) & (scores >= worst)).sum(axis=1)
    return np.where(counts > 0, np.minimum(found, counts) / np.maximum(counts, 1), 1.0)
