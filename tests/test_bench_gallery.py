"""The gallery bench runs and reports what it built."""

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[1] / "bench" / "bench_gallery.py"


def test_a_small_build_from_both_sources(tmp_path):
    words = ["--sets", "300", "--dim", "16", "--folder", str(tmp_path), "--json", "--out", "out"]
    done = subprocess.run(
        [sys.executable, str(BENCH), *words],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    rows = json.loads(done.stdout)["rows"]
    assert [row["source"] for row in rows] == [".npy", ".parquet"]
    assert all(row["sets"] == 300 and row["own MB"] > 0 for row in rows)
    assert (tmp_path / "out" / "bench_gallery.md").exists()
