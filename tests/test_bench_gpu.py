"""What `make gpu` runs: its steps, their limits, its scripts on tiny shapes, its plots."""

import json
import os
import sys
import tempfile
import xml.etree.ElementTree as tree
from pathlib import Path

import pytest
import torch

CPU = torch.device("cpu")


def test_plots_show_the_share_of_the_floor(load, tmp_path):
    plot = load("plot")
    rows = [
        {
            "similarity": "smooth_chamfer",
            "B": b,
            "K": k,
            "L": k,
            "D": d,
            "variant": v,
            "of floor": f,
        }
        for b, k, d, v, f in (
            (1, 4, 256, "triton", 0.9),
            (64, 4, 1024, "triton", 0.7),
            (64, 32, 1024, "matmul", 0.5),
        )
    ]
    document = {"steps": [{"results": [{"bench": "bench_score", "rows": rows}]}]}
    paths = plot.write(plot.rows_of(document), tmp_path, prefix="x-")
    assert [path.name for path in paths] == ["x-floor_by_dim.svg", "x-floor_by_batch.svg"]
    for path in paths:
        text = " ".join(e.text or "" for e in tree.parse(path).iter())
        assert "K = 4" in text and "K = 32" in text and "triton" in text
    assert plot.lines(plot.rows_of(document), "D")["triton"] == [(256, 0.9), (1024, 0.7)]
    assert plot.write([], tmp_path / "none") == []


def test_parts_of_a_grid_are_all_of_it(load):
    shapes = load("shapes")
    grid = shapes.shapes(torch.device("cuda"), "full")
    assert len(grid) == 4 * 3 * 6
    parts = [shapes.part(grid, f"{i}/4") for i in (1, 2, 3, 4)]
    assert sorted(map(str, sum(parts, []))) == sorted(map(str, grid))
    with pytest.raises(ValueError, match="I/N"):
        shapes.part(grid, "5/4")


def test_sets_are_unit_and_the_floor_counts_both_sizes(load):
    shapes = load("shapes")
    shape = shapes.Shape(3, 5, 2, 16, torch.float16, 4, "maxsim")
    queries, gallery = shape.sets(CPU)
    assert (queries.shape, gallery.shape) == ((3, 2, 16), (5, 4, 16))
    assert torch.allclose(gallery.float().norm(dim=-1), torch.ones(5, 4), atol=2e-3)
    assert shape.operations == 2 * 3 * 5 * 2 * 4 * 16
    assert shape.moved == (6 + 20) * 16 * 2 + 4 * 15


def test_search_on_a_gpu_is_rehearsed(load):
    """In the interpreter, in a process of its own."""
    gpu, steps = load("gpu"), load("gpu_steps")
    step = next(s for s in steps.Steps(True).chosen() if s.name == "search")
    with tempfile.TemporaryDirectory() as folder:
        found = gpu.run_step(step, 120, Path(folder) / "log")
        assert found.status == "ok", (Path(folder) / "log").read_text()
    rows = found.results[0]["rows"]
    assert {"eager", "triton", "excluded", "candidates"} <= {row["variant"] for row in rows}
    assert all(row["gate"] == "green" for row in rows)


def test_small_launches_cover_every_operation(load):
    """What a memory checker runs on a GPU, here in the interpreter."""
    gpu, steps = load("gpu"), load("gpu_steps")
    step = next(s for s in steps.Steps(True).chosen() if s.name == "small")
    with tempfile.TemporaryDirectory() as folder:
        found = gpu.run_step(step, 120, Path(folder) / "log")
        assert found.status == "ok", (Path(folder) / "log").read_text()
    checked = {row["operation"] for row in found.results[0]["rows"] if "gate" in row}
    assert {"scores", "gradient", "candidates", "search", "hardest negatives"} <= checked


def test_gpu_says_so_without_a_gpu(run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, printed = run("gpu")
    assert status == 1
    assert "no CUDA device" in printed and len(printed.strip().splitlines()) == 1


def test_gpu_rehearsal_writes_few_files(run, tmp_path):
    status, printed = run("gpu", "--rehearse", "--only", "triton", "score", "--out", tmp_path)
    assert status == 0, printed
    plots = ["gpu-floor_by_batch.svg", "gpu-floor_by_dim.svg"]
    files = ["gpu.json", "gpu.log", "gpu.md"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*plots, *files]
    steps = json.loads((tmp_path / "gpu.json").read_text())["steps"]
    by_name = {step["name"]: step for step in steps}
    assert {name: step["status"] for name, step in by_name.items()} == {
        "score": "ok",
        "triton": "ok",
    }
    checks = by_name["triton"]["results"][0]["rows"]
    launched = {row["check"]: row["count"] for row in checks if "count" in row}
    assert launched["launches of smooth_chamfer_forward"] > 0
    assert len(launched) >= 2  # and the gradient's
    assert "gradient of the training loss" in (tmp_path / "gpu.md").read_text()


@pytest.mark.parametrize("rehearse", [False, True])
def test_gpu_steps_are_within_their_time(load, rehearse):
    """What has to be known first runs first; every script is there; no part is over its time."""
    steps = load("gpu_steps").Steps(rehearse)
    chosen = [step.name for step in steps.chosen() if step.name != "build"]
    assert chosen[:3] == ["kernels", "small", "score"] and len(set(chosen)) == len(chosen)
    assert {"memcheck", "racecheck", "train", "divse-search", "tune", "first call"} <= set(chosen)
    for part in range(1, 7):
        assert 0 < sum(s.limit for s in steps.full(part) if s.name != "build") < 480
    for step in [*steps.chosen(), *(s for part in range(1, 7) for s in steps.full(part))]:
        scripts = [word for word in step.words if word.endswith(".py")]
        assert all(Path(script).exists() for script in scripts), step.words


@pytest.mark.parametrize(
    ("says", "status", "verdict"),
    [
        ("ERROR SUMMARY: 0 errors; exit 0", 0, "memcheck clean"),
        ("ERROR SUMMARY: 3 errors; exit 99", 1, "memcheck ERROR SUMMARY: 3 errors"),
        ("Error: Device not supported; exit 1", 0, "memcheck unable"),
    ],
)
def test_a_memory_checker_is_believed(run, tmp_path, monkeypatch, says, status, verdict):
    text, _, end = says.partition("; ")
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f'#!/bin/sh\necho "========= {text}"\n{end}\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    found, printed = run("sanitize", "--tools", "memcheck")
    assert found == status and printed.splitlines()[-1].startswith(verdict)


def test_gpu_full_runs_a_part(run, tmp_path):
    words = ("--rehearse", "--full", "--part", "6", "--only", "sanitize", "--out", tmp_path)
    status, printed = run("gpu", *words)
    assert status == 0, printed
    assert "nothing was checked" in (tmp_path / "gpu-full-6.md").read_text()
    assert len(list(tmp_path.iterdir())) == 3


def test_gpu_steps_fail_and_stop_alone(load, tmp_path):
    gpu = load("gpu")
    python, log = sys.executable, tmp_path / "log"
    log.write_text("")
    write = "import json, sys; json.dump({'rows': [{'a': 1}]}, open(sys.argv[1] + '/x.json', 'w'))"
    script = [python, "-c", f"{write}; print('written'); import time; time.sleep(60)", "{out}"]
    stopped = gpu.run_step(gpu.Step("slow", script, 60), 1.5, log)
    assert stopped.status == "stopped" and stopped.seconds < 20
    assert stopped.results == [{"rows": [{"a": 1}]}]  # what it had measured is kept
    failed = gpu.run_step(gpu.Step("bad", [python, "-c", "raise SystemExit('broken')"], 9), 9, log)
    assert (failed.status, failed.last_line) == ("failed", "broken")
    many_lines = "print('reading'); print('[\\n {\"k\": 2}\\n]')"
    printed = gpu.run_step(gpu.Step("json", [python, "-c", many_lines], 9), 9, log)
    assert (printed.status, printed.results) == ("ok", [[{"k": 2}]])
    gpu.write_results(tmp_path, {"device": "none"}, [stopped, failed, printed])
    rows = [{"variant": v, "of floor": f, "gate": g} for v, f, g in (("triton", 0.91, "green"),)]
    rows += [{"variant": "eager", "of floor": 0.1, "gate": "RED"}]
    found = gpu.Outcome("score", "failed", results=[{"rows": rows}])
    assert gpu.telling(found) == "1 gates RED; of floor: 0.91"
    page = (tmp_path / "gpu.md").read_text()
    assert "| k |" in page and "| bad" in page and "| a |" in page
    assert "==== slow: stopped" in log.read_text()


@pytest.mark.gpu
def test_bench_score_is_green_on_the_gpu(run):
    status, printed = run("bench_score", "--tiny", "--seconds", "0.1", "--json")
    assert status == 0
    rows = {row["variant"]: row for row in json.loads(printed)["rows"]}
    assert rows["triton"]["gate"] == "green"
