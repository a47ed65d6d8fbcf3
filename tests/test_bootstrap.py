"""Bootstrap intervals against brute force and known coverage."""

import time

import numpy as np
import pytest

from divse.evaluation import Interval, Ranks, paired_bootstrap, recalls

SOURCE = np.repeat(np.arange(40), 3)


def random_ranks(seed: int, scale: float, images: int = 40, per_image: int = 3) -> Ranks:
    rng = np.random.default_rng(seed)
    draw = lambda n: rng.exponential(scale, n).astype(np.int64)  # noqa: E731
    return Ranks(draw(images), draw(images * per_image))


def test_estimate_is_the_difference_of_the_metrics():
    a, b = random_ranks(0, 3.0), random_ranks(1, 8.0)
    got = paired_bootstrap(a, b, SOURCE, resamples=200)
    expected_a, expected_b = recalls(a), recalls(b)
    assert list(got) == list(expected_a)
    for name, interval in got.items():
        assert interval.estimate == pytest.approx(expected_a[name] - expected_b[name])
        assert interval.low <= interval.estimate <= interval.high


def test_equals_a_plain_loop():
    a, b = random_ranks(2, 2.0), random_ranks(3, 4.0)
    got = paired_bootstrap(a, b, SOURCE, resamples=50, seed=7)["rsum"]
    rng = np.random.default_rng(7)
    samples = []
    for picked in rng.integers(0, 40, (50, 40)):
        captions = np.concatenate([np.flatnonzero(i == SOURCE) for i in picked])
        rsum = [recalls(Ranks(m.i2t[picked], m.t2i[captions]))["rsum"] for m in (a, b)]
        samples.append(rsum[0] - rsum[1])
    low, high = np.percentile(samples, [2.5, 97.5])
    assert (got.low, got.high) == pytest.approx((low, high))


def test_same_model_differs_by_nothing_and_seed_repeats():
    a, b = random_ranks(4, 3.0), random_ranks(5, 3.0)
    same = paired_bootstrap(a, a, SOURCE, resamples=100)["rsum"]
    assert same == (0.0, 0.0, 0.0) and not same.excludes_zero
    first = paired_bootstrap(a, b, SOURCE, resamples=100, seed=1)
    assert first == paired_bootstrap(a, b, SOURCE, resamples=100, seed=1)
    assert first != paired_bootstrap(a, b, SOURCE, resamples=100, seed=2)


def test_clear_win_excludes_zero_both_ways():
    good, bad = random_ranks(6, 0.5), random_ranks(7, 30.0)
    assert paired_bootstrap(good, bad, SOURCE, resamples=500)["rsum"].low > 0
    assert paired_bootstrap(bad, good, SOURCE, resamples=500)["rsum"].high < 0


def test_captions_are_drawn_with_their_picture():
    """All captions of a picture share its fate here, so the spread is that of 40 draws, not 120."""
    fate = np.arange(40) % 2 * 100
    a = Ranks(np.zeros(40, np.int64), np.repeat(fate, 3))
    b = Ranks(np.zeros(40, np.int64), np.zeros(120, np.int64))
    got = paired_bootstrap(a, b, SOURCE, resamples=4000)["t2i_r1"]
    expected = 1.96 * 100 * np.sqrt(0.25 / 40)  # 15.5 points; independent captions: 8.9
    assert (got.high - got.low) / 2 == pytest.approx(expected, rel=0.1)


def test_queries_without_positive_stay_out():
    a, b = random_ranks(8, 2.0), random_ranks(9, 5.0)
    for model in (a, b):
        model.t2i[::4] = -1
    kept = np.flatnonzero(a.t2i >= 0)
    got = paired_bootstrap(a, b, SOURCE, resamples=100)["t2i_r1"]
    difference = (a.t2i[kept] < 1).mean() - (b.t2i[kept] < 1).mean()
    assert got.estimate == pytest.approx(100 * difference)


def test_ten_thousand_resamples_of_a_thousand_pictures_take_seconds():
    a, b = random_ranks(10, 3.0, 1000, 5), random_ranks(11, 3.5, 1000, 5)
    start = time.perf_counter()
    paired_bootstrap(a, b, np.repeat(np.arange(1000), 5), resamples=10_000)
    assert time.perf_counter() - start < 20  # about half a second on one idle core


def test_wrong_input_says_what_is_wrong():
    a, b = random_ranks(12, 3.0), random_ranks(13, 3.0)
    with pytest.raises(ValueError, match="same queries"):
        paired_bootstrap(a, Ranks(b.i2t[:-1], b.t2i), SOURCE)
    with pytest.raises(ValueError, match="image_of_caption"):
        paired_bootstrap(a, b, SOURCE[:-1])
    with pytest.raises(ValueError, match="resamples"):
        paired_bootstrap(a, b, SOURCE, resamples=0)
    assert Interval(1.0, 0.5, 1.5).excludes_zero
