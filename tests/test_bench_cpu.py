"""The CPU bench on tiny shapes: its gates, its columns, its plot."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import divse_native


@pytest.fixture
def bench(load):
    return load("bench_cpu")


def test_every_variant_is_gated_and_the_results_are_written(bench, tmp_path, monkeypatch):
    words = ("--tiny", "--no-compile", "--seconds", "0.02", "--json", "--out", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["bench_cpu.py", *words])
    assert bench.main() == 0
    written = json.loads((tmp_path / "bench_cpu.json").read_text())
    assert written["environment"]["isa"] == divse_native.instruction_sets()[0]
    rows = written["rows"]
    assert len({row["cell"] for row in rows}) == 3
    judged = [row for row in rows if "gate" in row]
    assert {row["gate"] for row in judged} == {"green"} and len(judged) >= 3 * 8
    certified = [row for row in rows if row["variant"] == "int8 certified"]
    assert all(10 <= row["survivors"] <= 90 for row in certified)
    assert all(row["x read"] == 1 for row in rows if row["variant"].startswith("read"))
    assert "<svg" in (tmp_path / "bench_cpu.svg").read_text()


def test_a_run_goes_on_after_the_cells_that_it_has(bench, tmp_path, monkeypatch):
    measured = []
    real = bench.measured
    monkeypatch.setattr(bench, "REST_SECONDS", 0)
    monkeypatch.setattr(bench, "measured", lambda c, *rest: measured.append(c) or real(c, *rest))
    words = ["bench_cpu.py", "--tiny", "--no-compile", "--seconds", "0", "--json"]
    monkeypatch.setattr(sys, "argv", [*words, "--resume", "--out", str(tmp_path)])
    monkeypatch.setenv("DIVSE_COMMIT", "one")
    assert bench.main() == 0 and len(measured) == 3
    whole = json.loads((tmp_path / "bench_cpu.json").read_text())
    cut = whole | {"rows": whole["rows"][:-1]}  # as if stopped before its last row
    (tmp_path / "bench_cpu.json").write_text(json.dumps(cut))
    assert bench.main() == 0 and len(measured) == 4 and measured[3] == measured[2]
    again = json.loads((tmp_path / "bench_cpu.json").read_text())
    assert [row["variant"] for row in again["rows"]] == [row["variant"] for row in whole["rows"]]
    monkeypatch.setenv("DIVSE_COMMIT", "another")
    assert bench.main() == 0 and len(measured) == 7


def test_the_gate_sees_wrong_scores_and_missed_sets(bench):
    exact = torch.linspace(0, 1, 40).double()
    best = exact.topk(bench.TOPK)
    found = (best.values[None].float(), best.indices[None])
    assert bench.judge(found, exact).green
    assert not bench.judge((found[0] + 1e-3, found[1]), exact).green
    missed = best.indices.clone()
    missed[-1] = 0
    assert not bench.judge((exact[missed][None].float(), missed[None]), exact).green


def test_both_orders_of_the_product_agree(load):
    searches = load("cpu_searches")
    queries, block = (searches.unit_sets(n, 3, 8, n, torch.float32) for n in (2, 7))
    one, other = (order(queries, block) for order in searches.ORDERS.values())
    assert one.shape == (2, 7, 3, 3)
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(one, torch.einsum("bkd,nld->bnkl", queries, block))


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="the scheduler of Linux")
def test_processes_that_keep_cores_awake_give_way_and_end(load, monkeypatch):
    harness, started = load("harness"), []

    def state(process):
        return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]

    class Recorded(subprocess.Popen):
        def __init__(self, *words, **options):
            super().__init__(*words, **options)
            started.append(self)

    monkeypatch.setattr(harness.subprocess, "Popen", Recorded)
    with harness.Cores() as cores:
        assert cores.awake and len(started) == len(os.sched_getaffinity(0))
        assert {os.sched_getscheduler(process.pid) for process in started} == {os.SCHED_IDLE}
        cores.rest(0.01)
        deadline = time.monotonic() + 20
        while {state(process) for process in started} != {"T"}:  # stopped, and in nobody's way
            assert time.monotonic() < deadline
    assert all(process.returncode is not None for process in started)
    monkeypatch.setattr(harness, "NAPS", "raise PermissionError")
    with harness.Cores() as cores:
        assert not cores.awake
        cores.rest(0)
