"""How long the first score of a new process takes, once it has been computed on this machine.

    python bench/first_call.py [--device cuda|cpu] [--json] [--out [DIR]]

Starts a process that scores once, throws its time away, then starts more: their kernels come from
Triton's cache on disk, their tiles from the tables or from autotune's cache. `first call` is that
of divse.score alone, importing it included; `process` is everything from start to exit. The goal
is a first call under 2 s.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time

from report import ROOT, Report, parser

GOAL = 2.0
PROCESS = """
import json, sys, time, torch
device, sets = sys.argv[1], int(sys.argv[2])
q, g = (torch.randn(n, 4, 256, device=device, dtype=torch.float16) for n in (8, sets))
q.sum().item()  # the device's own start-up
start = time.perf_counter()
import divse
divse.score(q, g, impl="triton")[0, 0].item()
print(json.dumps(time.perf_counter() - start))
"""


def once(device: str, sets: int) -> tuple[float, float]:
    """Seconds of the first call and of the whole process."""
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    start = time.perf_counter()
    words = [sys.executable, "-c", PROCESS, device, str(sets)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"the process failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1]), time.perf_counter() - start


def main() -> int:
    """Measure and report."""
    arguments = parser(__doc__)
    arguments.add_argument("--runs", type=int, default=5)
    args = arguments.parse_args()
    report = Report("first_call", args)
    sets = 4096 if report.device.type == "cuda" else 8
    cold = once(args.device, sets)
    warm = [once(args.device, sets) for _ in range(args.runs)]
    call, process = (statistics.median(column) for column in zip(*warm, strict=True))
    report.add(state="as found", **{"first call s": cold[0], "process s": cold[1]})
    goal = "met" if call < GOAL else "missed"
    report.add(state="warm", **{"first call s": call, "process s": process, "goal": goal})
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
