"""Intervals, swap tests and rank correlations against plain loops."""

import itertools

import numpy as np
import pytest

from divse.evaluation.correlation import SAMPLES, Rated, resampled, spearman
from divse.evaluation.figures import Part, mean_of, sum_of
from divse.evaluation.resampling import differences, intervals

PICTURES = 12
OWNER = np.repeat(np.arange(PICTURES), 3)


def figures(seed):
    """R@1 of a picture's own query and of its three captions in two folds, and their sum."""
    rng = np.random.default_rng(seed)
    first = Part((rng.random(PICTURES) < 0.5).astype(float), np.arange(PICTURES))
    folds = [
        Part((rng.random(18) < 0.6).astype(float), OWNER[:18]),
        Part((rng.random(18) < 0.4).astype(float), OWNER[18:]),
    ]
    found = {"i2t_r1": mean_of([first]), "t2i_r1": mean_of(folds)}
    return found | {"rsum": sum_of(list(found.values()))}


def value(figure, picked):
    """A figure of some pictures, each as often as it was picked."""
    total = 0.0
    for part, weight in zip(figure.parts, figure.weights, strict=True):
        rows = np.concatenate([np.flatnonzero(part.pictures == p) for p in picked])
        total += 100 * weight * part.values[rows].mean()
    return total


def test_a_figure_is_a_weighted_sum_of_means():
    found = figures(0)
    first, second = (part.values.mean() for part in found["t2i_r1"].parts)
    assert found["t2i_r1"].value == pytest.approx(50 * (first + second))
    assert found["rsum"].value == pytest.approx(found["i2t_r1"].value + found["t2i_r1"].value)


def test_intervals_equal_a_plain_loop():
    a, b = figures(1), figures(2)
    alone = intervals(a, resamples=40, seed=3)
    paired = differences(a, b, resamples=40, seed=3)
    picks = np.random.default_rng(3).integers(0, PICTURES, (40, PICTURES))
    for name in a:
        of_a = [value(a[name], picked) for picked in picks]
        of_b = [value(b[name], picked) for picked in picks]
        low, high = np.percentile(of_a, [2.5, 97.5])
        assert alone[name] == pytest.approx((a[name].value, low, high))
        low, high = np.percentile(np.subtract(of_a, of_b), [2.5, 97.5])
        expected = a[name].value - b[name].value, low, high
        assert paired[name].interval == pytest.approx(expected)


def test_the_swap_test_nears_the_exact_one():
    """All 2^12 swaps of pictures between the models, counted."""
    a, b = figures(4), figures(5)
    got = differences(a, b, resamples=20_000)
    part_a, part_b = a["i2t_r1"].parts[0], b["i2t_r1"].parts[0]
    change = part_a.values - part_b.values
    seen = abs(change.sum())
    swaps = np.array(list(itertools.product((-1, 1), repeat=PICTURES)))
    exact = np.mean(np.abs(swaps @ change) >= seen - 1e-9)
    assert got["i2t_r1"].p == pytest.approx(exact, abs=0.015)
    assert all(d.p == 1.0 for d in differences(a, a, resamples=50).values())


def test_a_clear_win_is_found_and_other_queries_are_refused():
    pictures = np.arange(60)
    good = {"r1": mean_of([Part(np.ones(60), pictures)])}
    bad = {"r1": mean_of([Part((pictures % 3 == 0).astype(float), pictures)])}
    found = differences(good, bad, resamples=500)["r1"]
    assert found.interval.low > 0 and found.p < 0.01
    assert differences(bad, good, resamples=500)["r1"].interval.high < 0
    fewer = {"r1": mean_of([Part(np.ones(59), pictures[:59])])}
    with pytest.raises(ValueError, match="same queries"):
        differences(good, fewer)
    with pytest.raises(ValueError, match="resamples"):
        intervals(good, resamples=0)


def ranks(values):
    """Mean ranks of ties, by counting."""
    return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])


@pytest.mark.parametrize("levels", [3, 1000])
def test_spearman_shares_ranks_among_ties(levels):
    rng = np.random.default_rng(levels)
    a, b = rng.integers(0, levels, 50), rng.random(50)
    b[10:20] = b[0]
    assert spearman(a, b) == pytest.approx(np.corrcoef(ranks(a), ranks(b))[0, 1])
    assert spearman(a, 2.0 * a + 1) == pytest.approx(1.0)
    assert np.isnan(spearman(a, np.ones(50)))


def test_each_sample_takes_half_of_the_queries_and_one_pair_of_each():
    rng = np.random.default_rng(0)
    queries = rng.integers(0, 9, 60) * 11
    ratings, scores = rng.integers(0, 6, 60) / 2, rng.random(60)
    got = resampled(queries, ratings, scores, samples=20, seed=5)
    order = np.argsort(queries, kind="stable")
    names = np.unique(queries)
    draws, expected = np.random.default_rng(5), []
    for _ in range(20):
        half = draws.permutation(len(names))[: len(names) // 2]
        share = draws.random(len(half))
        pairs = []
        for query, r in zip(names[half], share, strict=True):
            own = [row for row in order if queries[row] == query]
            pairs.append(own[int(r * len(own))])
        expected.append(spearman(ratings[pairs], scores[pairs]))
    np.testing.assert_allclose(got, expected)


def test_a_model_that_agrees_with_people_correlates():
    rng = np.random.default_rng(1)
    queries, ratings = np.repeat(np.arange(200), 4), rng.random(800) * 5
    close = resampled(queries, ratings, ratings + 0.1 * rng.standard_normal(800))
    apart = resampled(queries, ratings, rng.random(800))
    assert len(close) == SAMPLES
    assert close.mean() > 0.99 and abs(apart.mean()) < 0.1 and apart.std() > close.std()


def test_ratings_that_say_nothing_are_refused():
    pairs = np.arange(5)
    with pytest.raises(ValueError, match="two different ratings"):
        Rated("i2t", pairs, pairs, pairs, np.ones(5))
    with pytest.raises(ValueError, match="four queries"):
        Rated("i2t", pairs, pairs, pairs // 3, np.arange(5.0))
