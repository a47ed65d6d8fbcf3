"""bench/scenes_reading.py: attention on objects, by maps made by hand."""

import json

import numpy as np
import pytest
import tiny
import torch

import train

NOTHING = [-1] * 6


@pytest.fixture
def bench(load):
    return load("scenes_reading")


def thing(row, column):
    return [0, 0, 0, 0, row, column]


@pytest.mark.parametrize("cells", [3, 4, 8, 9])
def test_cells_are_shared_out_by_area(bench, cells):
    shares = bench.overlaps(cells)
    assert shares.shape == (3, cells)
    np.testing.assert_allclose(shares.sum(0), 1)
    np.testing.assert_allclose(shares.sum(1), cells / 3)
    even = np.full((1, 1, cells, cells), 1 / cells**2)
    np.testing.assert_allclose(bench.on_cells(even), 1 / 9)
    corner = np.zeros((1, 1, cells, cells))
    corner[0, 0, 0, -1] = 1
    expected = np.eye(9)[2]
    np.testing.assert_allclose(bench.on_cells(corner)[0, 0], expected, atol=1e-12)


def test_an_object_counts_once_and_ground_never(bench):
    scenes = np.array([[thing(0, 0), thing(2, 1), thing(1, 2), NOTHING]], dtype=np.int8)
    assert np.flatnonzero(bench.occupied(scenes)[0]).tolist() == [0, 5, 7]
    maps = np.zeros((1, 4, 9, 9))
    maps[0, 0, 0, 0] = maps[0, 1, 2, 2] = 1  # both look at the first object
    maps[0, 2, 4, 4] = 1  # the ground in the middle
    maps[0, 3, 8, 3], maps[0, 3, 3, 8] = 0.6, 0.4  # two objects, one of them mainly
    found = bench.reading(maps, scenes)
    assert (found["objects"], found["of"], found["blank"]) == (2, 3, 25)
    assert found["on objects"] == pytest.approx(75) and found["even"] == pytest.approx(100 / 3)
    spread = -(0.6 * np.log(0.6) + 0.4 * np.log(0.4))
    assert found["cells"] == pytest.approx((3 + np.exp(spread)) / 4)


def test_runs_are_read(run, tmp_path):
    words = tiny.arguments(train__epochs=1, train__gallery=False)
    train.main([*words, "--out", str(tmp_path / "runs" / "some-0")])
    torch.use_deterministic_algorithms(False)
    code, out = run(
        "scenes_reading", tmp_path / "runs", "--pictures", 7, "--json", "--device", "cpu"
    )
    (row,) = json.loads(out.splitlines()[-1])["rows"]
    assert code == 0 and row["epochs"] == 1 and 0 <= row["objects"] <= row["of"] <= 9
    assert row["rsum"] == json.loads((tmp_path / "runs/some-0/test.json").read_text())["rsum"]
