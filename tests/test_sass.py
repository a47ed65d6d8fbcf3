"""What the Triton kernels compile to, on a machine without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SCRIPT = Path(__file__).parents[1] / "bench" / "sass.py"


def sass(*words):
    """Run the bench as a user would; the kernels there must not be the interpreted ones of here."""
    command = [sys.executable, str(SCRIPT), "--json", "--only", *words]
    path = os.pathsep.join([str(SCRIPT.parents[1] / "kernels"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_no_kernel_spills_at_k_4():
    records = sass("1024x65536", "K=4", "D=1024", "bf16", "alpha=16")
    assert {r["arch"] for r in records} == {"sm_80", "sm_90", "sm_100"}
    assert {r["kernel"] for r in records} == {"smooth_chamfer_forward", "smooth_chamfer_backward"}
    for record in records:
        assert record["spills"] == record["spill_instructions"] == 0, record
        assert 0 < record["registers"] <= 255
        assert record["matmul"] > 0 and record["shared"] > 0


def test_one_exponential_for_each_pair_on_hopper():
    """256 x 128 cosines are 128 a thread; what is more are logarithms, 1 for 4 sums."""
    (record,) = sass(
        "smooth_chamfer_forward", "sm_90", "1024x65536", "K=4", "D=512", "bf16", "alpha=16"
    )
    assert record["mufu"] < 128 + 128 / 4 / 4 * 2 + 8
    assert record["shfl"] == 0
    assert record["instructions"] < 1834, "the best of the first experiments"
    assert 0.5 < record["predicted_ratio"] < 1.0
