"""Choosing a tile by measuring: the search with a timer of our own, and the file of winners."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from divse_kernels import tile_cache, tuning
from divse_kernels.autotune import line, neighbours, same, tune
from divse_kernels.problem import Problem, padded

PROBLEM = Problem("hopper", torch.bfloat16, 1024, 65_536, 4, 1024, 4, 16.0)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty folder of winners."""
    monkeypatch.setenv("DIVSE_CACHE", str(tmp_path / "cache"))
    tile_cache.forget()
    yield tmp_path / "cache"
    tile_cache.forget()


class Kernel:
    """Stands for a launcher: asks for its tile; its time is told by a formula."""

    def __init__(self, cost):
        self.cost, self.tile = cost, None

    def __call__(self):
        self.tile = tuning.forward_tile(PROBLEM)
        return torch.ones(3)

    def timer(self, call):
        call()
        return self.cost(self.tile)


def test_the_tables_serve_until_something_was_measured(cache):
    assert tuning.forward_tile(PROBLEM) == tile_cache.default_tile("forward", PROBLEM)
    assert not cache.exists()


def test_descent_finds_the_fastest_and_keeps_it(cache):
    kernel = Kernel(lambda tile: abs(tile.block_m - 64) + abs(tile.num_stages - 5) + 10.0)
    (result,) = tune(kernel, kernel.timer)
    assert (result.best.block_m, result.best.num_stages) == (64, 5)  # several steps away
    assert result.best_ms == 10.0 < result.default_ms
    assert "block_m 256 -> 64" in line("shape", result) and "num_stages 3 -> 5" in result.changes
    assert tuning.forward_tile(PROBLEM) == result.best
    near = replace(PROBLEM, row_sets=65_000, alpha=12.0)  # of the same bucket and path
    assert tuning.forward_tile(near) == result.best
    for other in (replace(PROBLEM, dims=512), replace(PROBLEM, row_sets=70_000)):
        assert tuning.forward_tile(other) == tile_cache.default_tile("forward", other)
    tile_cache.forget()  # another process
    assert tuning.forward_tile(PROBLEM) == result.best
    assert [path.suffix for path in cache.iterdir()] == [".json"]


def test_a_tile_must_be_clearly_faster():
    kernel = Kernel(lambda tile: 100.0 - (tile.num_stages == 4))
    (result,) = tune(kernel, kernel.timer)
    assert result.best == result.default and result.changes == "as it was"


def test_wrong_and_failing_tiles_are_never_chosen():
    class Broken(Kernel):
        def __call__(self):
            super().__call__()
            if self.tile.num_warps == 4:
                raise RuntimeError("out of resources")
            return torch.ones(3) * (1.0 if self.tile.block_m == 256 else 1.5)

    broken = Broken(lambda tile: tile.num_warps + tile.block_m)
    (result,) = tune(broken, broken.timer)
    assert (result.best.num_warps, result.best.block_m) == (8, 256)
    assert result.refused > 0


def test_neighbours_are_launchable_and_one_step_away():
    for sizes in ((4, 4), (32, 32), (6, 1)):
        task = replace(PROBLEM, row_size=sizes[0], column_size=sizes[1])
        tile = tile_cache.default_tile("forward", task)
        found = list(neighbours(tile, task))
        assert tile not in found and len(found) > 5
        for other in found:
            assert other.block_m % padded(sizes[0]) == 0 == other.block_n % padded(sizes[1])
            assert other.block_m >= 16 <= other.block_n and other.num_stages >= 1
            different = [k for k, v in vars(other).items() if v != getattr(tile, k)]
            assert len(different) == 1 or different == ["block_m", "num_warps"]


@pytest.mark.parametrize("text", ["{", "[]", '{"winners": {"forward": 3}}', '{"winners": 3}', ""])
def test_a_damaged_file_is_ignored_with_a_warning(cache, text):
    kernel = Kernel(lambda tile: float(tile.num_stages))
    file = tile_cache.path(PROBLEM)
    file.parent.mkdir(parents=True)
    if "winners" in text:
        text = json.dumps(json.loads(text) | {"sources": tile_cache.sources()})
    file.write_text(text)
    with pytest.warns(RuntimeWarning, match="ignored"):
        assert tuning.forward_tile(PROBLEM) == tile_cache.default_tile("forward", PROBLEM)
    tile_cache.forget()
    with pytest.warns(RuntimeWarning, match="ignored"):
        (result,) = tune(kernel, kernel.timer)
    tile_cache.forget()
    assert tuning.forward_tile(PROBLEM) == result.best  # written anew


def test_winners_of_other_sources_are_ignored(monkeypatch):
    kernel = Kernel(lambda tile: float(tile.num_stages))
    (result,) = tune(kernel, kernel.timer)
    assert result.best != result.default
    tile_cache.forget()
    monkeypatch.setattr(tile_cache, "sources", lambda: "another digest")
    assert tuning.forward_tile(PROBLEM) == result.default


def test_results_agree_but_for_rounding():
    x = torch.tensor([1.0, -2.0, float("-inf")])
    assert same((x, 3), (x + 1e-4, 3)) and not same((x, 3), (x, 4))
    assert not same(x, x + 0.1) and not same(x, x[:2])
    assert not same(torch.full((3,), torch.nan), x)
    assert same(torch.arange(9), torch.arange(9)) and not same(torch.arange(9), torch.zeros(9))


def test_a_real_launch_is_tuned_in_the_interpreter(cache):
    """The launchers ask for their tiles here, and results of every tile are compared."""
    script = """
import itertools, torch
from divse_kernels import smooth_chamfer, tile_cache
from divse_kernels.autotune import tune
q, g = (torch.randn(n, 4, 32).requires_grad_() for n in (3, 5))
clock = itertools.count(100.0, -1.0)
def timer(call):
    call()
    return next(clock)
call = lambda: torch.autograd.grad(smooth_chamfer(q, g).sum(), (q, g))
found = tune(call, timer, seconds=8.0)
print(*(f"{r.kernel} {r.measured > 1}" for r in found))
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    kernels = str(Path(__file__).parents[1] / "kernels")
    environment["PYTHONPATH"] = os.pathsep.join([kernels, os.environ.get("PYTHONPATH", "")])
    words = [sys.executable, "-c", script]
    result = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert "scores True" in result.stdout and "False" not in result.stdout
    assert result.stdout.count("True") >= 2  # and the gradient's
    assert len(list(cache.glob("tiles-interpreter-*.json"))) == 1


@pytest.mark.gpu
def test_the_main_shapes_are_tuned_on_a_gpu(cache):
    """One of them, for a second: what is kept is launched afterwards and gives the same."""
    from divse_kernels.tuned_shapes import scores

    call = scores(16, 4096, 4, 256)
    before = call()
    for result in tune(call, seconds=1.0):
        assert result.best_ms <= result.default_ms
    assert same(call(), before) and len(list(cache.iterdir())) == 1
