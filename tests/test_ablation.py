"""bench/ablation.py: its tables by hand, the CSV kept in order, and what is not trained again."""

import json

import numpy as np
import pytest

from divse.evaluation import seeds_interval

RSUM = {"smooth_chamfer": (360.0, 382.0, 371.0), "mil": (350.0, 373.0, 361.5), "k1": (340.0,)}


@pytest.fixture
def bench(load):
    return load("ablation")


@pytest.fixture
def table(bench, tmp_path):
    """A CSV of runs that were added in no order."""
    path = tmp_path / "ablation.csv"
    for config, values in RSUM.items():
        for seed in reversed(range(len(values))):
            row = {"data": "scenes", "config": config, "seed": seed, "rsum": values[seed]}
            if config != "k1":
                row |= {"share_images_1": 0.4, "share_texts_1": 0.2, "log_var_images": -1 - seed}
            bench.add_row(path, row)
    return path


def test_rows_stand_by_configuration_and_seed(bench, table):
    held = [(row["config"], int(row["seed"])) for row in bench.read_rows(table)]
    assert held == [(config, seed) for config in RSUM for seed in range(len(RSUM[config]))]


def test_differences_are_paired_by_seed(bench, table):
    mil, reference = bench.table(bench.read_rows(table), "scenes", "similarity")
    gaps = np.subtract(RSUM["mil"], RSUM["smooth_chamfer"])
    half = 4.302653 * gaps.std(ddof=1) / np.sqrt(3)  # Student's t of two degrees of freedom
    mean = gaps.mean()
    assert mil["minus reference"] == f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"
    assert mil["minus reference"] == str(seeds_interval(RSUM["mil"], RSUM["smooth_chamfer"]))
    assert (mil["resolved"], mil["seeds"], mil["RSUM"]) == ("yes", 3, "361.5")
    assert (mil["share"], mil["log Var pictures"], mil["log Var captions"]) == ("0.30", "-2.00", "")
    assert (reference["minus reference"], reference["resolved"]) == ("", "")


def test_one_seed_resolves_nothing(bench, table):
    k1, _ = bench.table(bench.read_rows(table), "scenes", "k")
    assert (k1["seeds"], k1["minus reference"], k1["resolved"]) == (1, "", "")
    assert k1["share"] == k1["log Var pictures"] == ""  # sets of one element have neither


def test_every_configuration_is_in_a_group_and_changes_one_setting(bench):
    assert {name for group in bench.GROUPS.values() for name in group} == set(bench.CONFIGS)
    assert all(bench.REFERENCE in group for group in bench.GROUPS.values())
    changed = {name: words[::2] for name, words in bench.CONFIGS.items()}
    assert changed.pop("k1") == ["--model.head", "--model.k"]  # one vector is pooled
    assert changed.pop(bench.REFERENCE) == []
    assert all(len(words) == 1 for words in changed.values())


def test_the_table_command_writes_beside_the_csv(run, table):
    code, out = run("ablation", "--table", "--csv", table)
    assert code == 0 and "**scenes, similarity**" in out
    assert table.with_suffix(".md").read_text() in out


def test_a_finished_run_is_not_trained_again(bench, tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(bench.subprocess, "run", lambda *words, **_: called.append(words))
    (tmp_path / "run-0").mkdir()
    (tmp_path / "run-0" / "test.json").write_text(json.dumps({"rsum": 1.0}))
    bench.train(tmp_path / "run-0", [])
    assert not called
