"""Several seeds: intervals by hand, tables and known coverage; comparisons with a reference."""

import numpy as np
import pytest

from divse.evaluation import mean_interval, seeds_interval
from divse.evaluation.seeds import compare, holm, model_name, p_value, run_name, student_t


def test_runs_are_called_by_model_and_seed():
    assert run_name("mil", 2) == "mil-2" and model_name("mil-2", 2) == "mil"
    assert model_name("vit-32", 0) == "vit-32", "a number that is not the seed is of the name"
    assert model_name("vit-32-0", 0) == "vit-32"


@pytest.mark.parametrize(
    ("freedom", "confidence", "expected"),  # published tables
    [
        (1, 0.95, 12.706),
        (2, 0.95, 4.303),
        (3, 0.95, 3.182),
        (4, 0.99, 4.604),
        (5, 0.90, 2.015),
        (9, 0.95, 2.262),
        (10, 0.99, 3.169),
        (30, 0.95, 2.042),
    ],
)
def test_student_t_equals_the_tables(freedom, confidence, expected):
    assert student_t(freedom, confidence) == pytest.approx(expected, abs=5e-4)


def test_seeds_interval_by_hand():
    got = seeds_interval([10.0, 12.0, 14.0], [9.0, 10.0, 11.0])  # differences 1, 2, 3
    assert got.estimate == pytest.approx(2.0)
    assert got.high - 2.0 == pytest.approx(4.3027 / np.sqrt(3), rel=1e-4)
    assert not got.excludes_zero
    assert str(got) == "+2.0 [-0.5, +4.5]"


def test_seeds_interval_covers_at_its_rate():
    rng = np.random.default_rng(0)
    draws = rng.normal(1.0, 2.0, (2000, 3))
    covered = [
        low <= 1.0 <= high for _, low, high in (seeds_interval(d, np.zeros(3)) for d in draws)
    ]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def test_mean_interval_is_that_of_differences_to_zero():
    values = [1.0, 2.5, 2.0]
    assert mean_interval(values) == pytest.approx(seeds_interval(values, [0.0] * 3))
    assert mean_interval(np.array([3.0])) == (3.0, 3.0, 3.0)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([0.2]) == [0.2]


@pytest.mark.parametrize(("t", "freedom"), [(12.706, 1), (4.303, 2), (2.262, 9), (2.064, 24)])
def test_p_is_five_percent_where_the_tables_say(t, freedom):
    assert p_value(-t * 0.7, 0.7, freedom) == pytest.approx(0.05, abs=1e-4)


def test_one_model_and_the_reference_are_the_paired_t_test():
    a, b = [10.0, 12.0, 14.0], [9.0, 10.0, 11.0]
    figures = {"b": dict(zip("xyz", b, strict=True)), "a": dict(zip("xyz", a, strict=True))}
    (found,) = compare(figures, "b").values()
    assert found.interval == pytest.approx(seeds_interval(a, b))
    assert found.p == pytest.approx(0.0742, abs=1e-4)  # t = 2 sqrt(3), two degrees of freedom
    assert not found.resolved and compare(figures, "b", confidence=0.9)["a"].resolved


def test_scatter_is_that_of_all_models_once_seeds_are_taken_off():
    """A balanced two-way layout, by its textbook formulas."""
    rng = np.random.default_rng(0)
    runs = rng.normal(0, 1, (5, 3)) + rng.normal(0, 20, 3) + np.array([0, 0, 3, 30, -30])[:, None]
    figures = {
        str(model): {str(seed): runs[model, seed] for seed in range(3)} for model in range(5)
    }
    found = compare(figures, "0")
    left = runs - runs.mean(0) - runs.mean(1, keepdims=True) + runs.mean()
    error = np.sqrt((left**2).sum() / 8 * 2 / 3)
    for model in range(1, 5):
        gap = runs[model].mean() - runs[0].mean()
        half = 2.306 * error  # t of eight degrees of freedom
        expected = (gap, gap - half, gap + half)
        assert found[str(model)].interval == pytest.approx(expected, abs=1e-3)
    raw = [p_value(c.interval.estimate, error, 8) for c in found.values()]
    assert [c.p for c in found.values()] == pytest.approx(holm(raw))
    assert found["3"].resolved and found["4"].resolved and not found["1"].resolved


def test_equal_models_are_rarely_resolved_however_many():
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(400):
        runs = rng.normal(0, 1, (13, 3))
        figures = {str(m): dict(zip("abc", run, strict=True)) for m, run in enumerate(runs)}
        wrong += any(one.resolved for one in compare(figures, "0").values())
    assert wrong < 0.08 * 400  # uncorrected about one in three would be


def test_seeds_that_are_not_shared_do_not_count():
    reference = {"0": 5.0, "1": 7.0, "2": 6.5}
    far = {"0": 1.0, "1": 4.0, "9": 1000.0}
    found = compare({"r": reference, "far": far, "one": {"0": 3.0, "9": 8.0}, "none": {}}, "r")
    assert list(found) == ["far"]
    assert found["far"].interval.estimate == pytest.approx(-3.5)
    assert compare({"r": reference, "one": {"0": 3.0}}, "r") == {}


def test_what_has_no_interval_says_so():
    for a, b in (([1.0], [2.0]), ([1.0, 2.0, 3.0], [2.0, 3.0])):
        with pytest.raises(ValueError, match="2 or more seeds"):
            seeds_interval(a, b)
    with pytest.raises(ValueError, match="1 or more runs"):
        mean_interval([])
