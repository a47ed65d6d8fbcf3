"""The CPU bench on tiny shapes: its gates, its columns, its plot."""

import json
import sys

import pytest
import torch


@pytest.fixture
def bench(load):
    return load("bench_cpu")


def test_every_variant_is_gated_and_the_results_are_written(bench, tmp_path, monkeypatch):
    words = ("--tiny", "--no-compile", "--seconds", "0.02", "--json", "--out", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["bench_cpu.py", *words])
    assert bench.main() == 0
    rows = json.loads((tmp_path / "bench_cpu.json").read_text())["rows"]
    assert len({row["cell"] for row in rows}) == 3
    judged = [row for row in rows if "gate" in row]
    assert {row["gate"] for row in judged} == {"green"} and len(judged) >= 3 * 8
    certified = [row for row in rows if row["variant"] == "int8 certified"]
    assert all(10 <= row["survivors"] <= 90 for row in certified)
    assert all(row["x read"] == 1 for row in rows if row["variant"].startswith("read"))
    assert "<svg" in (tmp_path / "bench_cpu.svg").read_text()


def test_the_gate_sees_wrong_scores_and_missed_sets(bench):
    exact = torch.linspace(0, 1, 40).double()
    best = exact.topk(bench.TOPK)
    found = (best.values[None].float(), best.indices[None])
    assert bench.judge(found, exact).green
    assert not bench.judge((found[0] + 1e-3, found[1]), exact).green
    missed = best.indices.clone()
    missed[-1] = 0
    assert not bench.judge((exact[missed][None].float(), missed[None]), exact).green


def test_both_orders_of_the_product_agree(bench):
    queries, block = (bench.unit_sets(n, 3, 8, n, torch.float32) for n in (2, 7))
    one, other = (order(queries, block) for order in bench.ORDERS.values())
    assert one.shape == (2, 7, 3, 3)
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(one, torch.einsum("bkd,nld->bnkl", queries, block))
