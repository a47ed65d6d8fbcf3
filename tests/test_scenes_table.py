"""bench/scenes_benchmark.py: chance exactly, the rows that show the scale, runs kept and pooled."""

import itertools
import json
import shutil

import numpy as np
import pytest
import tiny
import torch

import train
from divse.data.scenes import load as load_scenes
from divse.evaluation import map_at_r


def test_chance_is_the_mean_over_all_rankings(load):
    bench = load("scenes_benchmark")
    fits = np.array([[1, 1, 0, 1, 0], [0, 1, 1, 0, 1], [0, 0, 0, 0, 1]], dtype=bool)
    orders = np.array(list(itertools.permutations(range(5))), dtype=float)
    every = [map_at_r(np.tile(order, (3, 1)), fits) for order in orders]
    first = [fits[:, order.argmax()].mean() for order in orders]
    told = bench.chance(fits)
    assert told["i2t_map_at_r"] == pytest.approx(np.mean([f["i2t_map_at_r"] for f in every]))
    assert told["i2t_r_precision"] == pytest.approx(np.mean([f["i2t_r_precision"] for f in every]))
    assert told["i2t_r1"] == pytest.approx(100 * np.mean(first))
    assert bench.expected_precision(1, 1) == 1


def test_chance_of_scenes_is_what_random_scores_earn(load):
    bench, data = load("scenes_benchmark"), load_scenes("test", pictures=100)
    told = bench.chance(data.relevance)
    noise = np.random.default_rng(0).random((10, *data.relevance.shape))
    earned = [bench.figures_of(scores, data) for scores in noise]
    for name in bench.FIGURES:
        values = [figures[name] for figures in earned]
        error = np.std(values, ddof=1) / np.sqrt(len(values))
        assert abs(np.mean(values) - told[name]) < 4 * error


def test_the_scale_ends_at_the_truth(load):
    bench, data = load("scenes_benchmark"), load_scenes("test", pictures=40)
    rows = bench.baselines(data)
    assert list(rows) == ["chance", "source pairs", "truth"]
    assert set(rows["truth"].values()) == {100.0}
    source = rows["source pairs"]
    assert source["i2t_r1"] == source["t2i_r1"] == 100
    assert source["t2i_map_at_r"] == pytest.approx(100 * (1 / data.relevance.sum(0)).mean())
    assert rows["chance"]["t2i_r1"] < source["t2i_map_at_r"] < 100


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of train.py, tiny."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    words = tiny.arguments(train__epochs=1, train__gallery=False)
    train.main([*words, "--out", str(folder)])
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True
    return folder


@pytest.fixture
def runs(trained, tmp_path):
    """Two seeds of a model, a run on other data, and one that is not finished."""
    folder = tmp_path / "runs"
    for seed in (0, 1):
        shutil.copytree(trained, folder / f"tiny-{seed}")
        change(folder / f"tiny-{seed}" / "settings.json", "train", "seed", seed)
    shutil.copytree(trained, folder / "other")
    change(folder / "other" / "settings.json", "data", "name", "captions")
    shutil.copytree(trained, folder / "unfinished")
    (folder / "unfinished" / "test.json").unlink()
    return folder


def change(path, part, name, value):
    settings = json.loads(path.read_text())
    settings[part][name] = value
    path.write_text(json.dumps(settings))


def rows_of(text, model):
    document = json.loads(text.splitlines()[-1])
    return [row for row in document["rows"] if row["model"] == model]


def test_runs_of_several_seeds_are_one_row(runs, run, tmp_path):
    status, text = run("scenes_benchmark", runs, "--out", tmp_path / "out")
    assert status == 0 and "±" in text
    (row,) = rows_of(text, "tiny")
    told = json.loads((runs / "tiny-0" / "test.json").read_text())
    assert row["data"] == "scenes-v1+pictures=16" and row["seeds"] == 2
    for way in ("i2t", "t2i"):  # the same R@1 as train.py measured
        assert row[f"{way}_r1"] == pytest.approx([told[f"{way}_r1"]] * 3, abs=1e-3)
    assert {"scenes_benchmark.json", "scenes_benchmark.md", "scenes_benchmark.csv"} == {
        path.name for path in (tmp_path / "out").iterdir()
    }
    lines = (tmp_path / "out" / "scenes_benchmark.csv").read_text().splitlines()
    assert len(lines) == 3 and lines[1].startswith("scenes-v1+pictures=16,tiny,0,")


def test_what_a_run_scored_is_kept_while_it_is_true(runs, run, load, tmp_path, monkeypatch):
    words = (runs / "tiny-0", "--out", tmp_path / "out")
    (first,) = rows_of(run("scenes_benchmark", *words)[1], "tiny")
    kept = runs / "tiny-0" / "scenes-benchmark.json"
    bench = load("scenes_benchmark")

    def refuse(folder):
        raise AssertionError(f"{folder} was scored again")

    with monkeypatch.context() as patched:
        patched.setattr(bench.DivSE, "from_pretrained", refuse)
        assert rows_of(run("scenes_benchmark", *words)[1], "tiny") == [first]
    held = json.loads(kept.read_text())
    kept.write_text(json.dumps(held | {"weights": "other", "figures": {}}))
    assert rows_of(run("scenes_benchmark", *words)[1], "tiny") == [first]
    assert json.loads(kept.read_text()) == held


def test_a_run_that_measured_something_else_is_named(runs, load, capsys):
    (runs / "tiny-0" / "test.json").write_text('{"i2t_r1": 99.0, "t2i_r1": 99.0}')
    bench = load("scenes_benchmark")
    bench.row_of(next(bench.find_runs([runs / "tiny-0"])))
    assert "points off in R@1" in capsys.readouterr().err


def test_scores_of_others_stand_in_the_table(run, tmp_path):
    data = load_scenes("test", level="easy")
    np.save(tmp_path / "their.npy", data.relevance.astype(np.float32))
    np.save(tmp_path / "wrong.npy", data.relevance.T.astype(np.float32))
    (tmp_path / "none").mkdir()
    words = (tmp_path / "none", "--level", "easy", "--out", tmp_path / "out", "--scores")
    (row,) = rows_of(run("scenes_benchmark", *words, f"x={tmp_path / 'their.npy'}")[1], "x")
    assert row["data"] == "scenes-v1-easy" and row["i2t_map_at_r"] == 100
    with pytest.raises(SystemExit, match="pictures by captions"):
        run("scenes_benchmark", *words, f"x={tmp_path / 'wrong.npy'}")
    with pytest.raises(SystemExit, match="expected NAME=FILE.npy"):
        run("scenes_benchmark", *words, "their.npy")


def test_models_are_ranked_by_how_well_they_rank_all(load):
    bench = load("scenes_benchmark")
    rows = [
        {"data": "d", "model": name, **dict.fromkeys(bench.FIGURES, value)}
        for name, value in (("low", 1.0), ("high", 5.0), ("high", 7.0), ("middle", 5.5))
    ]
    found = bench.models_of(rows, "d")
    assert list(found) == ["high", "middle", "low"]
    assert str(found["high"]["i2t_r1"]) == "6.0 ± 12.7"  # t = 12.706 with one degree of freedom
    assert bench.models_of(rows, "other") == {}
