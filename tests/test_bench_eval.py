"""bench_eval.py on a few pictures: equal figures first, and no time where they differ."""

import json
from importlib.util import find_spec

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(
    find_spec("eccv_caption") is None, reason="eccv-caption is not installed"
)


def test_figures_are_equal_and_both_are_timed(run):
    code, out = run("bench_eval", "--part", 20, "--json", "--device", "cpu")
    rows = json.loads(out)["rows"]
    assert code == 0
    assert [row["what"] for row in rows] == [
        "divse",
        "eccv-caption",
        "eccv-caption with rankings",
    ]
    assert all(row["gate"] == "green" and row["largest difference"] <= 1e-9 for row in rows)
    assert all(row["figures"] == 12 and row["seconds"] >= 0 for row in rows)
    assert all(row["cpu s"] >= 0 and row["cpu ratio"] > 0 for row in rows)


def test_no_time_is_shown_where_a_figure_differs(run, load, monkeypatch):
    bench = load("bench_eval")
    right = bench.measured
    monkeypatch.setattr(
        bench, "measured", lambda *words: {n: v + 1e-6 for n, v in right(*words).items()}
    )
    code, out = run("bench_eval", "--part", 10, "--json", "--device", "cpu")
    (row,) = json.loads(out)["rows"]
    assert code == 1 and row["gate"] == "RED" and "seconds" not in row
    with pytest.raises(ValueError, match="one side only"):
        bench.compare({"a": 1.0}, {"b": 1.0})


def test_made_up_scores_have_no_ties(load):
    bench = load("bench_eval")
    data = bench.corpus(25)
    protocols = [bench.PROTOCOLS[name](data, bench.Sources()) for name in ("coco-5k", "coco-1k")]
    scores = bench.made_up(data, protocols)
    for lines in (scores, scores.T):
        gaps = np.diff(np.sort(lines, axis=1), axis=1) / lines.max()
        assert gaps.min() > 1e-6
