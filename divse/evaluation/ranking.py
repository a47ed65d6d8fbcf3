"""Places of fitting items among all others, for many judgements at once, never storing all scores.

`negatives_ahead` scores the matrix in strips of rows, in tiles. Everything that is measured here
follows from one number a fitting item: how many *negatives* (items of the gallery that do not fit)
score at least as high. **Ties count against the model**: scores that differ by less than `TIE` of
their size are level. Counting needs no mask of what fits: all items at or above a score are
counted, then the fitting ones among them, which are few and known, are taken off.

Where queries are rows, a strip holds all there is to know. Where they are columns, a first pass
over the tiles that hold fitting pairs finds the scores to beat; those tiles are scored twice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np

from divse.evaluation.judgement import Array, Judgement
from divse.evaluation.scores import MatrixScores, Scores

#: Relative difference below which two scores are equal: the fp32 slack of every implementation.
TIE = 8 * float(np.finfo(np.float32).eps)
STRIP = 1 << 25  # scores of a strip at most: 128 MiB of fp32
SORTED = 32  # levels of a line from which sorting it costs less than counting level by level
ROWS = 63  # of a column sum at a time: their comparisons stay in a core's cache

Progress = Callable[[str, int, int], object]  # what is done, rows done, rows in all


def negatives_ahead(
    scores: Scores,
    judgements: Sequence[Judgement],
    *,
    block: int = 1024,
    progress: Progress | None = None,
) -> list[Array]:
    """Count, for each judgement, the negatives at or above its fitting items.

    Returns for each judgement int64 (Q,), the count above the best item of each query; or, where
    it asks for `every` item, (P,): the counts of each query's items, best item first.
    """
    if block < 1:
        raise ValueError(f"block must be at least 1 set, got {block}")
    for judgement in judgements:
        judgement.check(scores.shape)
    rows = [_ByRow(judgement) for judgement in judgements if not judgement.by_column]
    columns = [_ByColumn(judgement) for judgement in judgements if judgement.by_column]
    tiles = _Tiles(scores, block)
    tell = progress or (lambda what, step, total: None)
    if columns:
        for strip in tiles.strips():
            for start in sorted({s for each in columns for s in each.starts(strip, tiles.block)}):
                tile = tiles.tile(strip, start)
                for each in columns:
                    each.collect(tile, strip, start)
            tell("fitting pairs", strip.stop - strip.start, scores.shape[0])
        for each in columns:
            each.settle()
    counters: list[_Counter] = [*rows, *columns]
    for strip in tiles.strips():
        whole = tiles.whole(strip)
        for counter in counters:
            counter.count(whole, strip)
        tell("ranking", strip.stop - strip.start, scores.shape[0])
    done = {id(counter.judgement): counter.ahead for counter in counters}
    return [done[id(judgement)] for judgement in judgements]


class _Tiles:
    """Strips of rows of a score matrix, scored in tiles; the last ones are kept."""

    def __init__(self, scores: Scores, block: int) -> None:
        self.rows, self.columns = scores.shape
        self.height = max(1, min(block, STRIP // self.columns))
        # what is scored already needs no tiles
        self.block = self.columns if isinstance(scores, MatrixScores) else block
        kept = max(1, STRIP // (self.height * self.block))  # small problems are scored once
        self._scored = lru_cache(maxsize=kept)(
            lambda a, b, c, d: scores.tile(slice(a, b), slice(c, d))
        )

    def strips(self) -> Iterator[slice]:
        for start in range(0, self.rows, self.height):
            yield slice(start, min(start + self.height, self.rows))

    def tile(self, strip: slice, start: int) -> Array:
        stop = min(start + self.block, self.columns)
        return self._scored(strip.start, strip.stop, start, stop)

    def whole(self, strip: slice) -> Array:
        """All columns of a strip."""
        if self.columns <= self.block:
            return self.tile(strip, 0)
        first = self.tile(strip, 0)
        whole = np.empty((len(first), self.columns), first.dtype)
        whole[:, : self.block] = first
        for start in range(self.block, self.columns, self.block):
            whole[:, start : start + self.block] = self.tile(strip, start)
        return whole


class _Counter(ABC):
    """Counts of one judgement."""

    def __init__(self, judgement: Judgement) -> None:
        self.judgement = judgement
        self.ahead = np.zeros(len(judgement.items) if judgement.every else len(judgement), np.int64)

    def needed(self, found: Array, queries: slice) -> Array:
        """Scores at which a negative draws level, of the items of some queries.

        Of every item, best first within its query, or of each query's best; and takes the fitting
        items that reach them off the counts.
        """
        offsets = self.judgement.offsets[queries.start : queries.stop + 1]
        offsets = offsets - offsets[0]
        owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        if not self.judgement.every:
            level = slack(np.maximum.reduceat(found, offsets[:-1]))
            self.ahead[queries] -= np.add.reduceat(found >= level[owner], offsets[:-1])
            return level
        falling = found[np.lexsort((-found, owner))]
        level = slack(falling)
        window = self.window(queries)
        for begin, end in zip(offsets[:-1], offsets[1:], strict=True):
            reach = np.searchsorted(-falling[begin:end], -level[begin:end], side="right")
            self.ahead[window.start + begin : window.start + end] -= reach
        return level

    @abstractmethod
    def count(self, whole: Array, strip: slice) -> None:
        """Count what a strip of rows, all their columns, holds."""

    def window(self, queries: slice) -> slice:
        """Where the items of some queries stand."""
        offsets = self.judgement.offsets
        return slice(int(offsets[queries.start]), int(offsets[queries.stop]))


class _ByRow(_Counter):
    """Queries are rows: a strip holds everything about its own."""

    def count(self, whole: Array, strip: slice) -> None:
        judgement = self.judgement
        queries = span(judgement.queries, strip)
        if queries.start == queries.stop:
            return
        local = judgement.queries[queries] - strip.start
        window = self.window(queries)
        rows = np.repeat(local, judgement.counts[queries])
        level = self.needed(whole[rows, judgement.items[window]].astype(np.float64), queries)
        bar = at_least(level, whole.dtype)
        lines = (taken(whole[row], judgement.gallery, 0) for row in local)
        if not judgement.every:
            self.ahead[queries] += [
                np.count_nonzero(line >= one) for line, one in zip(lines, bar, strict=True)
            ]
            self.ahead[queries] -= self._self(whole, local, queries) >= bar
            return
        offsets = judgement.offsets[queries.start : queries.stop + 1] - window.start
        owner = np.repeat(np.arange(len(local)), np.diff(offsets))
        self.ahead[window] += reaching(lines, bar, offsets)
        self.ahead[window] -= self._self(whole, local, queries)[owner] >= bar

    def _self(self, whole: Array, local: Array, queries: slice) -> Array:
        """How each query scores with itself if that is no answer; else NaN: counts nowhere."""
        judgement = self.judgement
        asked = judgement.queries[queries]
        if not judgement.skip_self:
            return np.full(len(asked), np.nan)
        own: Array = whole[local, asked]
        if judgement.gallery is None:
            return own
        return np.where(np.isin(asked, judgement.gallery), own, np.nan)


class _ByColumn(_Counter):
    """Queries are columns: their fitting items' scores are collected before anything is counted."""

    def __init__(self, judgement: Judgement) -> None:
        super().__init__(judgement)
        owner = np.repeat(np.arange(len(judgement)), judgement.counts)
        self.order = np.argsort(judgement.items, kind="stable")  # fitting pairs by row
        self.rows = judgement.items[self.order]
        self.columns = judgement.queries[owner][self.order]
        self.found = np.empty(len(owner))
        self.level: Array = np.empty(0)

    def starts(self, strip: slice, block: int) -> list[int]:
        """Columns at which those tiles of a strip begin that hold fitting pairs."""
        numbers = np.unique(self.columns[span(self.rows, strip)] // block)
        return [int(number) * block for number in numbers]

    def collect(self, tile: Array, strip: slice, start: int) -> None:
        """Keep the scores of the fitting pairs in a tile."""
        mine = span(self.rows, strip)
        rows, columns = self.rows[mine] - strip.start, self.columns[mine] - start
        inside = (columns >= 0) & (columns < tile.shape[1])
        self.found[self.order[mine][inside]] = tile[rows[inside], columns[inside]]

    def settle(self) -> None:
        """Fix the scores to beat, once all are there."""
        self.level = self.needed(self.found, slice(0, len(self.judgement)))

    def count(self, whole: Array, strip: slice) -> None:
        judgement = self.judgement
        rows = None
        if judgement.gallery is not None:
            rows = judgement.gallery[span(judgement.gallery, strip)] - strip.start
            if not len(rows):
                return
        part = taken(whole, rows, 0)
        bar = at_least(self.level, whole.dtype)
        if judgement.every:
            lines = np.ascontiguousarray(part.T[judgement.queries])
            self.ahead += reaching(lines, bar, judgement.offsets)
            return
        first, last = int(judgement.queries[0]), int(judgement.queries[-1])
        levels = np.full(last + 1 - first, np.nan, bar.dtype)  # NaN: a column that does not ask
        levels[judgement.queries - first] = bar
        found = column_sums(part[:, first : last + 1], levels)
        self.ahead += found[judgement.queries - first]


def reaching(lines: Iterable[Array], bar: Array, offsets: Array) -> Array:
    """Count the scores of each line that reach its levels, which fall: (P,)."""
    found = np.empty(len(bar), np.int64)
    for line, begin, end in zip(lines, offsets[:-1], offsets[1:], strict=True):
        levels = bar[begin:end]
        if len(levels) < SORTED:
            found[begin:end] = [np.count_nonzero(line >= level) for level in levels]
            continue
        rising = np.sort(line[line >= levels[-1]])
        found[begin:end] = len(rising) - np.searchsorted(rising, levels)
    return found


def column_sums(scores: Array, levels: Array) -> Array:
    """Count the scores of each column that reach its level, (n,)."""
    found = np.zeros(scores.shape[1], np.int64)
    for start in range(0, len(scores), ROWS):  # at most 255, for a byte counts them
        reached = (scores[start : start + ROWS] >= levels).view(np.uint8)
        found += np.add.reduce(reached, axis=0, dtype=np.uint8)
    return found


def slack(scores: Array) -> Array:
    """What a negative must reach to draw level with these scores, in float64."""
    scores = scores.astype(np.float64)
    finite = np.where(np.isfinite(scores), scores, 0.0)
    return np.where(np.isfinite(scores), finite - TIE * np.abs(finite), scores)


def at_least(level: Array, dtype: np.dtype[np.floating]) -> Array:
    """The smallest numbers of a type that are not below float64 levels: compares the same, fast."""
    if dtype == np.float64:
        return level
    near = level.astype(dtype)
    return np.where(near < level, np.nextafter(near, dtype.type(np.inf)), near)


def span(positions: Array, strip: slice) -> slice:
    """Where increasing positions lie within a strip."""
    begin, end = np.searchsorted(positions, [strip.start, strip.stop])
    return slice(int(begin), int(end))


def taken(matrix: Array, positions: Array | None, axis: int) -> Array:
    """Rows or columns at increasing positions; a view where they are consecutive."""
    if positions is None:
        return matrix
    if positions[-1] - positions[0] + 1 == len(positions):
        window = slice(int(positions[0]), int(positions[-1]) + 1)
        return matrix[window] if axis == 0 else matrix[:, window]
    return matrix.take(positions, axis=axis)
