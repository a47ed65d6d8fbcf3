"""divse-search through the Triton kernels: build a gallery, query it, compare with float64.

    python bench/search_cli.py [--sets 20000] [--json] [--out [DIR]]

Both commands run as a user would run them, with --impl triton, which never falls back.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from harness import Verdict
from report import ROOT, Report, parser
from scorers import ALPHA, eager

QUERIES, TOPK = 6, 10


def divse_search(*words: str) -> str:
    """Run the command -> what it printed."""
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-m", "divse.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"divse-search {words[0]} failed:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def answers(folder: Path, queries: np.ndarray, gallery: np.ndarray) -> tuple[np.ndarray, ...]:
    """Scores and positions (B, topk) that the command found."""
    for name, values in (("gallery", gallery), ("queries", queries)):
        np.save(folder / f"{name}.npy", values)
    built, asked = str(folder / "built"), str(folder / "queries.npy")
    divse_search("build", built, "--embeddings", str(folder / "gallery.npy"), "--no-index")
    words = ["--embeddings", asked, "--topk", str(TOPK), "--plan", "exact", "--impl", "triton"]
    printed = divse_search("query", built, *words, "--alpha", str(ALPHA), "--json")
    hits = [json.loads(line)["hits"] for line in printed.splitlines() if line.startswith("{")]
    return tuple(np.array([[hit[key] for hit in row] for row in hits]) for key in ("score", "id"))


def main() -> int:
    """Build, query, compare."""
    arguments = parser(__doc__)
    arguments.add_argument("--sets", type=int, default=20_000)
    args = arguments.parse_args()
    report = Report("search_cli", args)
    generator = torch.Generator().manual_seed(0)
    gallery, queries = (
        torch.nn.functional.normalize(torch.randn(n, 4, 128, generator=generator), dim=-1)
        for n in (args.sets, QUERIES)
    )
    with tempfile.TemporaryDirectory() as folder:
        scores, ids = answers(Path(folder), queries.numpy(), gallery.numpy())
    stored = gallery.half().double()
    best = eager(queries.double(), stored).topk(TOPK)
    error = float(np.abs(scores - best.values.numpy()).max())
    report.add(Verdict(error, 2e-6), check="scores of the top 10 by divse-search --impl triton")
    differing = float((ids.astype(np.int64) != best.indices.numpy()).mean())
    report.add(Verdict(differing, 0.02), check="share of the top 10 that differs (rounding)")
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
