"""One call on a machine with a GPU: its tests and its benches, within minutes (`make gpu`).

    python bench/gpu.py [--out DIR] [--minutes 8] [--only STEP ...] [--rehearse]
    python bench/gpu.py --full --part N      N from 1 to 6: what takes longer, a call for each part

Needs torch and triton; what else a step needs and does not find fails that step alone. Each step
is a process with its own time limit (bench/gpu_steps.py), and what it measured before a stop is
kept. Writes at most five files to DIR (default: the folder in the environment variable OUT, else
bench/results/<device>): gpu.json (everything), gpu.md (tables), gpu.log (output of all steps) and,
where scores were timed, two plots; a part of the full run is called gpu-full-N instead of gpu.
Prints a short table last. `--rehearse` runs the same steps on a CPU with tiny shapes: it proves the
flow, no figure of it means anything.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from gpu_steps import NATIVE, PARTS, Step, Steps, installed
from plot import rows_of
from plot import write as write_plots
from report import ROOT, environment, markdown, results_folder

LOG_BYTES = 600_000  # of each step's output, its end


@dataclass
class Outcome:
    """What became of a step."""

    name: str
    status: str  # "ok", "failed", "stopped" (time limit) or "left out"
    seconds: float = 0.0
    last_line: str = ""
    results: list[Any] = field(default_factory=list)


def run_step(step: Step, limit: float, log: Path) -> Outcome:
    """Run a step to its end or its limit; its output goes to the log, its JSON to the outcome."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as output:
        words = [word.replace("{out}", folder) for word in step.words]
        start = time.perf_counter()
        process = subprocess.Popen(
            words,
            cwd=ROOT,
            env=step_environment()
            | {k: v.replace("{out}", folder) for k, v in step.environment.items()},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = "ok" if process.wait(limit) == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = "stopped"
        finally:
            end_group(process)
        seconds = time.perf_counter() - start
        text = tail(output)
        with log.open("a") as file:
            file.write(f"==== {step.name}: {status} after {seconds:.1f} s\n{text}\n")
        lines = [line for line in text.splitlines() if line.strip()]
        found = [json.loads(p.read_text()) for p in sorted(Path(folder).glob("*.json"))]
        found += [] if found else printed_json(lines)
    last = next((line for line in reversed(lines) if line[0] not in "[{|"), "")
    return Outcome(step.name, status, round(seconds, 1), last[:200], found)


def step_environment() -> dict[str, str]:
    """This environment, with the repository, its kernels and the built module importable."""
    paths = [str(ROOT), str(ROOT / "kernels"), "" if installed() else str(NATIVE)]
    paths.append(os.environ.get("PYTHONPATH", ""))
    return os.environ | {"PYTHONPATH": os.pathsep.join(p for p in paths if p)}


def end_group(process: subprocess.Popen) -> None:
    """End what a step left running: it leads its own process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may hold a process for a while
        process.wait(15)


def tail(output: Any) -> str:
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - LOG_BYTES))
    return output.read().decode(errors="replace")


def printed_json(lines: list[str]) -> list[Any]:
    """The JSON document, of one line or many, that the output ends with."""
    for i, line in enumerate(lines):
        if line[0] in "[{":
            with contextlib.suppress(json.JSONDecodeError):
                return [json.loads("\n".join(lines[i:]))]
    return []


def write_results(
    folder: Path, record: dict[str, Any], outcomes: list[Outcome], name: str = "gpu"
) -> None:
    """NAME.json and NAME.md, rewritten after each step so that a stop loses nothing."""
    document = {"environment": record, "steps": [asdict(outcome) for outcome in outcomes]}
    (folder / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    parts = [f"# {record['device']}\n", markdown([record]), summary(outcomes)]
    for outcome in outcomes:
        for result in outcome.results:
            rows = result.get("rows", []) if isinstance(result, dict) else result
            if rows and all(isinstance(row, dict) for row in rows):
                parts += [f"## {outcome.name}\n", markdown(rows)]
    (folder / f"{name}.md").write_text("\n".join(parts))


def summary(outcomes: list[Outcome]) -> str:
    """The short table."""
    return markdown(
        [{"step": o.name, "status": o.status, "s": o.seconds, "": telling(o)} for o in outcomes]
    )


def telling(outcome: Outcome) -> str:
    """What a step found, in a line: figures of our kernels, or the last line it printed."""
    documents = [result for result in outcome.results if isinstance(result, dict)]
    rows = [row for document in documents for row in document.get("rows", [])]
    ours = [row for row in rows if row.get("variant") in ("triton", "cuda")]
    texts = [
        f"{column}: " + ", ".join(f"{row[column]:.2f}" for row in rows if row.get(column))
        for rows, column in (
            (ours, "x matmul"),
            (ours, "of floor"),
            (ours, "matmuls"),
            ([row for row in rows if row.get("state") == "warm"], "first call s"),
        )
        if any(row.get(column) for row in rows)
    ]
    red = sum(row.get("gate") == "RED" for row in rows)
    return "; ".join([f"{red} gates RED"] * bool(red) + texts) or outcome.last_line


def arguments() -> argparse.Namespace:
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--out", type=Path, help="folder of the result files")
    result.add_argument("--minutes", type=float, default=8.0, help="for everything together")
    result.add_argument("--full", action="store_true", help="what takes longer, in parts")
    result.add_argument("--part", type=int, default=1, choices=range(1, PARTS + 1))
    result.add_argument("--only", nargs="+", metavar="STEP", help="these steps alone")
    result.add_argument("--rehearse", action="store_true", help="CPU, tiny shapes")
    args = result.parse_args()
    known = [step.name for step in chosen(args)]
    for name in args.only or []:
        if name not in [*known, "build"]:
            result.error(f"unknown step {name}; the steps are {', '.join(known)}")
    return args


def chosen(args: argparse.Namespace) -> list[Step]:
    """The steps that were asked for, in order."""
    steps = Steps(args.rehearse)
    return list(steps.full(args.part) if args.full else steps.chosen())


def main() -> int:
    """Run the steps until the time is up; 0 if all were fine."""
    args = arguments()
    if not torch.cuda.is_available() and not args.rehearse:
        print("bench/gpu.py: torch finds no CUDA device here; --rehearse runs the flow on a CPU.")
        return 1
    deadline = time.monotonic() + 60 * args.minutes
    device = torch.device("cpu" if args.rehearse else "cuda")
    folder = args.out or Path(os.environ.get("OUT") or results_folder(device))
    folder.mkdir(parents=True, exist_ok=True)
    name = f"gpu-full-{args.part}" if args.full else "gpu"
    log, record, outcomes = folder / f"{name}.log", environment(device), []
    log.write_text("")
    for step in chosen(args):
        if args.only and step.name not in args.only:
            continue
        left = deadline - time.monotonic() - 5  # seconds to write the results
        missing = [o.name for o in outcomes if o.name == step.needs and o.status != "ok"]
        if left <= 5 or missing:
            why = f"as {step.needs} was not ok" if missing else "no time was left"
            outcomes.append(Outcome(step.name, "left out", last_line=why))
        else:
            outcomes.append(run_step(step, min(step.limit, left), log))
        write_results(folder, record, outcomes, name)
        print(f"{step.name}: {outcomes[-1].status}, {outcomes[-1].seconds} s", flush=True)
    write_plots(rows_of([outcome.results for outcome in outcomes]), folder, prefix=f"{name}-")
    print(f"\n{record['device']}, commit {record['commit']}: results in {folder}\n")
    print(summary(outcomes))
    return 0 if all(outcome.status == "ok" for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
