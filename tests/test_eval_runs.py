"""divse-eval of runs of train.py: their own figures, and whether two are of one data set."""

import json
import shutil

import numpy as np
import pytest
import tiny
from eval_cases import figures

import train
from divse.cli.eval_data import same_data
from divse.data import ImageTextData


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two tiny runs of train.py that differ in their seed."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        changes = {"train__seed": seed, "train__epochs": 0, "train__gallery": False}
        train.main(tiny.arguments(train__out=folder / f"run{seed}", **changes))
    return folder


def test_a_run_scores_as_train_py_said(call, runs):
    code, out, err = call(runs / "run0", runs / "run1", "--ensemble", "--json")
    assert (code, err) == (0, "")
    for number in (0, 1):
        said = json.loads((runs / f"run{number}" / "test.json").read_text())
        got = figures(out, number)
        log_var = json.loads(out)["models"][number]["log_var"]
        for name, value in said.items():
            now = log_var[name.removeprefix("log_var_")] if "log_var" in name else got[name]
            assert now == pytest.approx(value, abs=1e-3), name
    assert json.loads(out)["models"][2]["name"] == "ensemble of 2"
    data = json.loads(out)["data"]
    assert (data["pictures"], data["split"]) == (16, "test")
    code, out, _ = call(runs / "run0", "--split", "val", "--json")
    assert json.loads(out)["data"]["split"] == "val" and code == 0


def test_a_model_folder_that_is_no_run_needs_data(call, runs, tmp_path):
    _, out, _ = call(runs / "run0", "--json")
    run = figures(out)
    folder = tmp_path / "model"
    shutil.copytree(runs / "run0", folder)
    (folder / "settings.json").unlink()
    code, _, err = call(folder)
    assert code == 1 and "give --data PATH" in err
    words = ("--layout", "scenes", "--option", "pictures=16", "--json")
    code, out, _ = call(folder, *words)
    assert code == 0 and figures(out) == pytest.approx(run)
    code, _, err = call(folder, "--layout", "scene")
    assert code == 1 and "did you mean scenes" in err
    code, _, err = call(folder, "--layout", "scenes", "--option", "pictures")
    assert code == 2 and "NAME=VALUE" in err


def test_runs_of_different_data_are_refused(call, runs, tmp_path):
    np.save(tmp_path / "scores.npy", np.zeros((10, 52)))
    code, _, err = call(runs / "run0", "--scores", tmp_path / "scores.npy")
    assert code == 1 and "has 10 pictures and 52 captions" in err


def test_runs_on_worlds_of_one_size_are_refused(call, runs, tmp_path):
    """Owners alone do not tell them apart: every picture of scenes has five captions."""
    other = tmp_path / "other"
    shutil.copytree(runs / "run1", other)
    settings = json.loads((other / "settings.json").read_text())
    settings["data"]["options"]["seed"] = 1
    (other / "settings.json").write_text(json.dumps(settings))
    code, _, err = call(runs / "run0", other)
    assert code == 1 and "+seed=1/test is not the data of the models before" in err
    code, out, _ = call(runs / "run0", other, "--layout", "scenes", "--option", "pictures=16")
    assert code == 0 and "other" in out


@pytest.mark.parametrize(
    ("second", "same"),
    [("A dog.|Two cats|a bird", True), ("a dog|a fish|a cow", False), ("a dog|2 cats|a b", False)],
)
def test_layouts_of_one_data_set_may_spell_captions_otherwise(second, same):
    def split(captions):
        owner = np.arange(len(captions))
        return ImageTextData("x", "test", [str(i) for i in owner], captions, owner, np.zeros)

    first = split(["a dog", "two cats", "a bird !"])
    assert same_data(first, split(second.split("|"))) is same
