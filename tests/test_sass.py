"""What the Triton kernels compile to, on a machine without a GPU, and the model of their speed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

BENCH = Path(__file__).parents[1] / "bench"
MINOR = ".".join(triton.__version__.split(".")[:2])


def sass(*words):
    """Run the bench as a user would; the kernels there must not be the interpreted ones of here."""
    command = [sys.executable, str(BENCH / "sass.py"), *words]
    path = os.pathsep.join([str(BENCH.parent / "kernels"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    environment.pop("TRITON_INTERPRET", None)
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_guarded_kernels_keep_to_their_budgets():
    """No spill, and at most a tenth more registers, special functions or instructions."""
    known = json.loads((BENCH / "sass_budgets.json").read_text())
    if MINOR not in known:
        pytest.skip(f"no budgets for Triton {MINOR}; python bench/sass.py --update-budgets")
    result = sass("--budgets")
    assert result.returncode == 0, result.stderr


def test_every_architecture_compiles():
    """The main shape for sm_80, sm_90 and sm_100, without spills and within what a block has."""
    result = sass("--json", "--only", "scores", "1024x65536", "K=4", "D=1024", "bf16", "alpha=16")
    assert result.returncode == 0, result.stderr
    records = [r for r in json.loads(result.stdout) if "ragged" not in r["shape"]]
    assert {r["arch"] for r in records} == {"sm_80", "sm_90", "sm_100"}
    for record in records:
        assert record["spills"] == record["spill_instructions"] == 0, record
        assert 0 < record["registers"] <= 255
        assert record["matmul"] > 0 and record["shared"] > 0
    (hopper,) = (r for r in records if r["arch"] == "sm_90")
    # 256 x 128 cosines are 128 a thread, a quarter by a polynomial, and 1 logarithm for 4 sums;
    # the rest divides, twice, for the place of the next tile
    assert hopper["mufu"] < 96 + 128 / 4 / 4 * 2 + 16
    assert hopper["shfl"] == 0


@pytest.mark.skipif(not shutil.which("nvcc"), reason="nvcc is not installed: make sass needs it")
def test_cuda_kernels_hide_their_folds(load):
    """By counts: no spill; neither issue nor special functions take longer than the products."""
    cuda, cases, model = load("sass_cuda"), load("sass_cases"), load("sass_model")
    records = cuda.records()
    assert len(records) == 5 * 2 * 2  # sizes, types, factors
    for record in records:
        assert record["spills"] == record["spill_instructions"] == 0, record
        assert record["matmul"] == 8 and record["registers"] == 168
    for record in records:
        # a quarter of 128 exponentials by a polynomial; logarithms of products, or of each sum
        logs = {2: 64, 4: 16, 8: 8, 16: 4, 32: 2}[record["K"]]
        if record["factors"] == 4:
            assert record["mufu"] <= 96 + logs + 8, record
        if record["K"] > 2:
            row = model.of_turns(cases.Case("scores", record["K"], 128), record)
            assert row["loop"] > max(row["issue"], row["MUFU"]), row
    goals = [
        model.of_turns(case, next(r for r in records if r["K"] == case.k and r["factors"] == 4))
        for case in cases.predicted()
    ]
    assert [row["met"] for row in goals if "met" in row] == ["yes"] * 3


def test_budgets_tell_what_is_over(load):
    sass = load("sass")
    record = {"kernel": "a", "operation": "b", "shape": "c", "spills": 0}
    record |= {"registers": 100, "mufu": 10, "instructions": 1100}
    budget = {"registers": 100, "mufu": 10, "instructions": 1000}
    assert sass.overspent(record, budget) == []
    assert sass.overspent(record | {"mufu": 12}, budget) == ["a: b c: mufu 12, budget 10"]
    assert sass.overspent(record | {"spills": 4}, budget) == ["a: b c: spills 4 bytes"]
    assert "--update-budgets" in sass.overspent(record, None)[0]


def test_every_guarded_case_has_a_budget(load):
    """Where a case is added, its budget is too, whatever the versions of Triton."""
    cases, known = load("sass_cases"), json.loads((BENCH / "sass_budgets.json").read_text())
    assert {"3.6", "3.8", "nvcc 13.0"} <= set(known)
    for version, entry in known.items():
        if version.startswith("nvcc"):
            continue
        for case in cases.GUARDED:
            filed = f": {case.operation} {case.shape}"
            assert any(name.endswith(filed) for name in entry), (version, filed)


def test_the_model_reproduces_what_was_measured(load):
    model = load("sass_model")
    found = {row.what: row for row in model.rows()}
    fused = [row for what, row in found.items() if what.startswith("first fused")]
    assert len(fused) == 2
    for row in fused:  # nothing was fitted to them
        assert row.predicted == pytest.approx(row.measured, rel=0.03)
    for row in found.values():
        assert row.predicted is not None or row.note, f"{row.what}: why is it not covered?"
        if row.note == "fitted":
            assert row.predicted == pytest.approx(row.measured, rel=0.01)


def test_the_model_judges_against_the_goals(load):
    model, cases = load("sass_model"), load("sass_cases")
    record = {"tile": "256x128x64", "warps": 8, "epilogue": model.MAXIMUM, "mufu": 0}
    record |= {"matmul": 4, "kernel": "smooth_chamfer_forward", "spills": 8, "persistent": False}
    nothing = model.prediction(cases.Case("scores", 4, 1024), record)
    assert nothing["x cuBLAS"] == pytest.approx(0.96, abs=0.01) and nothing["met"] == "yes"
    bound = model.prediction(cases.Case("scores", 4, 1024), record | {"mufu": 180})
    assert bound["MUFU"] == 2880 and bound["x cuBLAS"] == pytest.approx(0.86, abs=0.01)
    other = model.prediction(cases.Case("scores", 4, 256), record | {"tile": "64x64x64"})
    assert "never measured" in other["note"] and "x cuBLAS" not in other
    products = model.in_products(cases.Case("scores", 4, 1024), record)
    assert products["products"] == pytest.approx(1 / 0.96, abs=0.01)
    assert "spills 8 bytes" in products["note"]
    walking = record | {"persistent": True, "instructions": model.MAXIMUM_ALL + 500}
    found = model.prediction(cases.Case("scores", 4, 256), walking)
    assert found["issue"] == 1000 and found["of floor"] < found["of floor, hidden"]
    two = {"tile": "128x128x64", "warps": 4, "registers": 250, "shared": 100 << 10}
    assert "two blocks" in model.prediction(cases.Case("scores", 4, 256), record | two)["note"]


LISTING = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   LDG R2, [R4] ;
        /*0020*/                   HGMMA.64x16x16.F32.BF16 R8, gdesc[UR4], R8 ;
        /*0030*/               @P1 BRA 0x10 ;
        /*0040*/                   MUFU.LG2 R3, R3 ;
        /*0050*/               @P0 BRA 0x0 ;
        /*0060*/                   BRA 0x60 ;
"""


def test_the_loop_over_dimensions_is_found(load):
    assert load("machine_code").inner_loop(LISTING) == 3
    assert load("machine_code").inner_loop(LISTING.replace("HGMMA", "FFMA")) == 0


def test_goals_are_judged(load):
    goals, cases = load("sass_goals"), load("sass_cases")
    record = {"kernel": "search_scan", "tile": "128x16x64", "warps": 4, "registers": 72}
    record |= {"shared": 73_728, "instructions": 1000, "loop": 300, "mufu": 20}
    case = cases.Case("search", 4, 1024, (1, 1_000_000))
    row = goals.streamed(case, record, 0.95)
    assert row["predicted"] == 1 and row["met"] == "yes" and "3 programs" in row["why"]
    alone = goals.streamed(case, record | {"shared": 150_000}, 0.95)
    assert alone["met"] == "no"  # nothing loads while it ends
    slow = goals.streamed(case, record | {"loop": 1000, "instructions": 3000}, 0.95)
    expected = 128 * 2048 / (3.08e12 / 132) * 1.7e9 / (2000 + 16 * 1000)
    assert slow["predicted"] == pytest.approx(min(1, expected))
    mining = {"epilogue": 1000, "mufu": 100, "persistent": False}
    loss = goals.triplet(mining)
    assert 1.0 < loss["predicted"] < 1.6 and loss["met"] == "yes"
    assert goals.triplet(mining | {"epilogue": 9000})["met"] == "no"
    weights = mining | {"tile": "128x128x64"}
    loss = goals.dense(mining, weights)
    assert 4.0 < loss["predicted"] < 5.0 and loss["met"] == "yes"
    assert goals.dense(mining, weights | {"epilogue": 9000})["met"] == "no"
    walk = {"tile": "256x64x128", "warps": 8, "loop": 300, "mufu": 4}
    assert goals.long_sets(goals.LONG[0], walk)["predicted"] == 1
    assert goals.long_sets(goals.LONG[0], walk | {"loop": 1400})["predicted"] < 0.5


def test_the_page_shows_this_model(load):
    """`python bench/sass.py --update-page` writes between these marks."""
    text = load("sass").PAGE.read_text()
    assert "<!-- python bench/sass.py --predict -->\n| K " in text
    summary = load("sass_model").report().splitlines()[-1]
    assert summary in text, "python bench/sass.py --update-page"
    for option in ("--predict-cuda", "--goals"):
        table = text.partition(f"<!-- python bench/sass.py {option} -->\n")[2].partition(
            "<!-- end"
        )[0]
        assert "| yes " in table and "not a measurement" in table, option
