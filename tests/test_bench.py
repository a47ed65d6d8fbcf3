"""Benches: the gate, the timer, the table, and the scripts themselves on tiny shapes."""

import json
import sys
import time

import numpy as np
import pytest
import torch

CPU = torch.device("cpu")


def test_gate_is_held_to_float64(load):
    harness = load("harness")
    exact = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    plain = exact + 1e-6
    allowed = 2e-6 + 8 * torch.finfo(torch.float32).eps * 4
    verdict = harness.gate(exact + 2e-6, exact, plain)
    assert verdict.green
    assert verdict.error == pytest.approx(2e-6) and verdict.allowed == pytest.approx(allowed)
    assert not harness.gate(exact + 7e-6, exact, plain).green
    assert harness.gate(exact + 7e-6, exact, plain, rounding=1e-5).green
    assert not harness.gate(exact * torch.nan, exact, plain).green
    with pytest.raises(ValueError, match="shape"):
        harness.gate(exact[:2], exact, plain)


def test_times_are_interleaved_and_right(load):
    harness = load("harness")
    order = []

    def sleeper(name, seconds):
        return lambda: (order.append(name), time.sleep(seconds))

    variants = {"short": sleeper("short", 0.002), "long": sleeper("long", 0.006)}
    times = harness.time_interleaved(variants, CPU, seconds=0.08)
    assert len(times["short"]) == len(times["long"]) >= 5
    assert order[4:8] == ["short", "long", "short", "long"]  # after two warm-up calls of each
    assert min(times["short"]) >= 2.0 and min(times["long"]) >= 6.0


def test_ratio_is_the_median_of_rounds(load):
    times = {"a": [10.0, 20.0, 90.0], "b": [5.0, 10.0, 10.0]}
    assert load("harness").ratio(times, "a", "b") == 2.0


def test_peak_memory_sees_a_large_temporary(load):
    harness = load("harness")
    used = harness.peak_bytes(lambda: torch.ones(8 << 20).sum(), CPU)
    if used is None:
        pytest.skip("this system does not let a process reset its memory high-water mark")
    assert 24e6 < used < 80e6  # 33.6 MB


def test_markdown_table(load):
    rows = [{"shape": "a", "ms": 1.23456}, {"shape": "bb", "ms": None, "error": 1.5e-7}]
    assert load("report").markdown(rows).splitlines() == [
        "| shape | ms    | error   |",
        "|-------|-------|---------|",
        "| a     | 1.235 |         |",
        "| bb    |       | 1.5e-07 |",
    ]


def test_floor_is_the_larger_of_compute_and_memory(load):
    ceilings = load("roofline").Roofline(read=1e9, copy=1e9, matmul={torch.float32: 1e12})
    assert ceilings.floor_ms(2e12, 1e9, torch.float32) == pytest.approx(2000)
    assert ceilings.floor_ms(1e9, 3e9, torch.float32) == pytest.approx(3000)


def test_bench_score_gates_every_variant(run, tmp_path):
    words = ("--tiny", "--no-compile", "--seconds", "0.05", "--device", "cpu")
    status, printed = run("bench_score", *words, "--json", "--out", tmp_path)
    assert status == 0
    document = json.loads(printed)
    assert json.loads((tmp_path / "bench_score.json").read_text()) == document
    assert {"device", "torch", "commit", "date", "read_gb_s"} <= set(document["environment"])
    assert {row["similarity"] for row in document["rows"]} == {"smooth_chamfer", "maxsim"}
    judged = [row for row in document["rows"] if row["variant"] != "matmul"]
    assert {"eager", "reference"} <= {row["variant"] for row in judged}
    for row in judged:
        assert row["gate"] == "green" and row["error"] <= row["allowed"] < 1e-5
        assert row["ms"] > 0 and row["of floor"] > 0


def test_bench_training_gates_the_gradient(run, load):
    words = ("--tiny", "--no-compile", "--seconds", "0.05", "--device", "cpu", "--json")
    status, printed = run("bench_training", *words)
    rows = {(row["loss"], row["variant"]): row for row in json.loads(printed)["rows"]}
    assert status == 0
    assert {loss for loss, _ in rows} == {"triplet", "info_nce", "mmd"}
    for (loss, variant), row in rows.items():
        assert row["ms"] > 0 and (variant == "matmul" or row["gate"] == "green"), (loss, variant)
    assert rows["triplet", "eager"]["ms"] > rows["triplet", "matmul"]["ms"]
    bench = load("bench_training")
    images, texts = load("shapes").Shape(7, 7, 2, 32, torch.float32).sets(CPU)
    for name, right in bench.FORMULAS.items():
        wrong = lambda q, g, right=right: right(q * (1 + 1e-4), g)  # noqa: E731
        assert bench.judge(name, "native", right, images, texts).green
        assert not bench.judge(name, "native", wrong, images, texts).green


def test_triplet_by_hand(load):
    scores = torch.tensor([[0.9, 0.5, 0.8], [0.1, 0.4, 0.3], [0.0, 0.6, 0.7]])
    # rows: 0.2 + [0.8 - 0.9, 0.3 - 0.4, 0.6 - 0.7]; columns: 0.2 + [0.1 - 0.9, 0.6 - 0.4, 0.1]
    expected = (0.1 + 0.1 + 0.1) / 3 + (0.0 + 0.4 + 0.3) / 3
    assert float(load("bench_training").triplet(scores)) == pytest.approx(expected)


def test_a_wrong_variant_gets_no_speed(load, tmp_path, monkeypatch):
    bench, report = load("bench_score"), load("report")
    args = report.parser(None).parse_args(["--device", "cpu", "--out", str(tmp_path)])
    found = report.Report("wrong", args)
    shape = bench.Shape(3, 20, 2, 32, torch.float32)
    ceilings = load("roofline").Roofline(1e9, 1e9, {torch.float32: 1e12})
    right = bench.eager
    scorers = {"eager": right, "broken": lambda q, g: right(q, g) * (1 + 1e-4)}
    monkeypatch.setattr(bench, "scorers", lambda *_: (scorers, ""))
    bench.run(shape, found, ceilings, impls=["broken"], compiled=False, seconds=0.02)
    rows = {row["variant"]: row for row in found.rows}
    assert rows["eager"]["gate"] == "green" and rows["eager"]["ms"] > 0
    assert rows["broken"]["gate"] == "RED" and "ms" not in rows["broken"]
    assert found.finish() == 1
    assert not json.loads((tmp_path / "wrong.json").read_text())["green"]


def test_ridge_compares_runs_in_pairs(load):
    bench, report = load("openmoji_ridge"), load("report")
    found = report.Report("pairs", report.parser(None).parse_args(["--device", "cpu"]))
    owner = np.arange(50)
    place = [np.full(50, rank) for rank in (3, 0, 20)]
    models = dict(zip(("ridge", "good", "bad"), (bench.Ranks(p, p) for p in place), strict=True))
    bench.compare(found, models, owner)
    rows = {row["model"]: row for row in found.rows}
    assert list(rows) == ["good - ridge", "bad - ridge", "good - bad"]
    assert rows["good - ridge"]["rsum"] == (200.0, 200.0, 200.0)  # R@1 both ways
    assert rows["bad - ridge"]["rsum"] == (-400.0, -400.0, -400.0)
    assert rows["good - bad"]["excludes 0"] and rows["good - bad"]["i2t_r5"] == (100, 100, 100)
    assert "+200.0 [+200.0, +200.0]" in report.markdown(found.rows)


def test_ridge_finds_a_linear_map(load):
    bench = load("openmoji_ridge")
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((12, 6))

    def split(n):
        pictures, owner = rng.standard_normal((n, 12)), np.repeat(np.arange(n), 2)
        captions = (pictures @ truth)[owner] + 0.01 * rng.standard_normal((2 * n, 6))
        return bench.Features(pictures, captions, owner)

    found = bench.centred({name: split(40) for name in bench.SPLITS})
    captions = found["train"].captions
    assert np.allclose(np.linalg.norm(captions, axis=1), 1)
    penalty, scores = bench.ridge(found)
    assert penalty in bench.PENALTIES and scores.shape == (40, 80)
    owner = found["test"].owner
    assert bench.recalls(bench.ranks(scores, owner))["rsum"] > 560
    tied = np.repeat(scores[:, :40], 2, axis=1)[:, :80] * 0
    assert bench.recalls(bench.ranks(tied, owner))["rsum"] == 0.0
    assert bench.recalls(bench.ties_won(tied, owner))["rsum"] == 600.0


def test_scenes_seeds_reports_paired_differences(load):
    bench = load("scenes_seeds")
    rows = [
        {"model": name, "seed": seed, **dict.fromkeys(bench.METRICS, 10.0 * k + seed)}
        for seed in (0, 1, 2)
        for name, k in (("k4", 4), ("k1", 1))
    ]
    rows[0]["rsum"] += 3.0  # k4, seed 0: differences 33, 30, 30
    last = bench.differences(rows, [0, 1, 2])[-1]
    assert (last["metric"], last["k4 - k1"]) == ("rsum", "+31.00")
    assert last["95% interval"] == "[+26.70, +35.30]"  # 31 -+ 4.303 sqrt(3) / sqrt(3)
    options = bench.model_options("k1", "scenes")
    assert options[:3] == ["--model.k", "1", "--model.dim"] and int(options[3]) % 4 == 0


def test_scenes_seeds_keeps_finished_runs(load, tmp_path, monkeypatch):
    bench = load("scenes_seeds")
    for seed in (0, 1):
        for name, rsum in (("k4", 300.0 + seed), ("k1", 290.0)):
            folder = tmp_path / f"{name}-{seed}"
            folder.mkdir()
            figures = dict.fromkeys(bench.METRICS, 50.0) | {"rsum": rsum}
            (folder / "test.json").write_text(json.dumps(figures))
    monkeypatch.setattr(sys, "argv", ["x", "--out", str(tmp_path), "--seeds", "0", "1"])
    monkeypatch.setattr(bench.subprocess, "run", lambda *a, **k: pytest.fail("trained again"))
    assert bench.main() == 0
    lines = (tmp_path / "runs.csv").read_text().splitlines()
    assert len(lines) == 5 and lines[1].startswith("k4,0,")
    assert "+10.50" in (tmp_path / "differences.md").read_text()
