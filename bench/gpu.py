"""One call on a machine with a GPU: its tests and every bench, within minutes (`make gpu`).

    python bench/gpu.py [--out DIR] [--minutes 8] [--only STEP ...] [--rehearse]

Needs torch and triton; what else a step needs and does not find fails that step alone. Each step
is a process with its own time limit, and what it measured before a stop is kept. Writes three
files to DIR (default: the folder in the environment variable OUT, else bench/results/<device>):
gpu.json (everything), gpu.md (tables), gpu.log (output of all steps); prints a short table last.
`--rehearse` runs the same steps on a CPU with tiny shapes: it proves the flow, no figure of it
means anything.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from report import ROOT, environment, markdown, results_folder

LOG_BYTES = 1_000_000  # of each step's output, its end
NATIVE = ROOT / "build" / "bench-native"


@dataclass(frozen=True)
class Step:
    """A program to run; `{out}` in its words becomes a folder whose JSON files are collected."""

    name: str
    words: list[str]
    limit: float  # seconds
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Outcome:
    """What became of a step."""

    name: str
    status: str  # "ok", "failed", "stopped" (time limit) or "left out" (no time was left)
    seconds: float = 0.0
    last_line: str = ""
    results: list[Any] = field(default_factory=list)


def steps(rehearse: bool) -> Iterator[Step]:
    """All steps, the most telling first."""
    python = sys.executable
    bench = str(ROOT / "bench")
    device = "cpu" if rehearse else "cuda"
    tiny = ["--tiny"] if rehearse else []
    shared = ["--device", device, "--out", "{out}"]
    interpreter = {"TRITON_INTERPRET": "1"} if rehearse else {}
    if not installed():
        yield Step("build", ["sh", "-c", build_command()], 120)
    # on a GPU the kernels' own tests run there, compiled; on a CPU they run in the interpreter
    kernels = [str(path) for path in sorted((ROOT / "tests").glob("test_triton*.py"))]
    yield Step("kernels", [*pytest_words(rehearse), *kernels], 180)
    yield Step("tests", [*pytest_words(rehearse), "-m", "gpu", str(ROOT / "tests")], 90)
    yield Step("triton", [python, f"{bench}/through_triton.py", *tiny, *shared], 60, interpreter)
    score = [python, f"{bench}/bench_score.py", *tiny, *shared]
    yield Step("score", [*score, *(["--no-compile", "--seconds", "0.1"] if rehearse else [])], 180)
    training = [python, f"{bench}/bench_training.py", *tiny, *shared]
    training += ["--no-compile", "--seconds", "0.1"] if rehearse else []
    yield Step("training", training, 75)
    roofline = [python, f"{bench}/roofline.py", *(["--small"] if rehearse else []), *shared]
    yield Step("roofline", [*roofline, "--seconds", "0.1" if rehearse else "2"], 45)
    yield Step("train", train_command(device, rehearse), 90)
    sizes = ["--sets", "500", "--queries", "2", "--seconds", "0.1"] if rehearse else []
    yield Step("search", [python, f"{bench}/bench_search.py", *sizes, *shared], 60)
    sass = [python, f"{bench}/sass.py", "--help" if rehearse else "--json"]
    yield Step("sass", sass, 90)


def pytest_words(rehearse: bool) -> list[str]:
    """pytest as it serves here: every failure told, warnings of other versions let through."""
    words = [sys.executable, "-m", "pytest", "-ra", "--tb=short", "-p", "no:cacheprovider"]
    words += ["-W", "default", "--continue-on-collection-errors"]
    if rehearse:
        return [*words, "--collect-only"]
    parallel = importlib.util.find_spec("xdist") is not None  # compiling keeps the CPU busy
    return [*words, "-n", "8"] if parallel else words


def installed() -> bool:
    """Whether the C++ module is installed; else it is built here, in `NATIVE`."""
    return importlib.util.find_spec("divse_native") is not None


def build_command() -> str:
    """Build the C++ module without pip, which may have no network."""
    build, python = NATIVE, sys.executable
    return (
        f'cmake -S "{ROOT}/csrc" -B "{build}" -G Ninja -DPython_EXECUTABLE="{python}" '
        f'-Dpybind11_DIR="$("{python}" -m pybind11 --cmakedir)" && cmake --build "{build}"'
    )


def train_command(device: str, rehearse: bool) -> list[str]:
    """A short real training run whose scores come from the Triton kernels."""
    words = [sys.executable, str(ROOT / "train.py"), "--preset", "scenes", "--out", "{out}/run"]
    words += ["--train.device", device, "--train.gallery", "false", "--epochs", "1"]
    if rehearse:
        return [*words, "--impl", "reference", "--data.options", "pictures=40"]
    return [*words, "--impl", "triton"]


def run_step(step: Step, limit: float, log: Path) -> Outcome:
    """Run a step to its end or its limit; its output goes to the log, its JSON to the outcome."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as output:
        words = [word.replace("{out}", folder) for word in step.words]
        start = time.perf_counter()
        process = subprocess.Popen(
            words,
            cwd=ROOT,
            env=step_environment() | step.environment,
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
    process.wait()


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


def write_results(folder: Path, record: dict[str, Any], outcomes: list[Outcome]) -> None:
    """gpu.json and gpu.md, rewritten after each step so that a stop loses nothing."""
    document = {"environment": record, "steps": [asdict(outcome) for outcome in outcomes]}
    (folder / "gpu.json").write_text(json.dumps(document, indent=1) + "\n")
    parts = [f"# {record['device']}\n", markdown([record]), summary(outcomes)]
    for outcome in outcomes:
        for result in outcome.results:
            rows = result.get("rows", []) if isinstance(result, dict) else result
            if rows and all(isinstance(row, dict) for row in rows):
                parts += [f"## {outcome.name}\n", markdown(rows)]
    (folder / "gpu.md").write_text("\n".join(parts))


def summary(outcomes: list[Outcome]) -> str:
    """The short table."""
    return markdown(
        [{"step": o.name, "status": o.status, "s": o.seconds, "": o.last_line} for o in outcomes]
    )


def arguments() -> argparse.Namespace:
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--out", type=Path, help="folder of the three result files")
    result.add_argument("--minutes", type=float, default=8.0, help="for everything together")
    result.add_argument("--only", nargs="+", metavar="STEP", help="these steps alone")
    result.add_argument("--rehearse", action="store_true", help="CPU, tiny shapes")
    args = result.parse_args()
    known = ["build", *(step.name for step in steps(args.rehearse))]
    for name in args.only or []:
        if name not in known:
            result.error(f"unknown step {name}; the steps are {', '.join(dict.fromkeys(known))}")
    return args


def main() -> int:
    args = arguments()
    if not torch.cuda.is_available() and not args.rehearse:
        print("bench/gpu.py: torch finds no CUDA device here; --rehearse runs the flow on a CPU.")
        return 1
    deadline = time.monotonic() + 60 * args.minutes
    device = torch.device("cpu" if args.rehearse else "cuda")
    folder = args.out or Path(os.environ.get("OUT") or results_folder(device))
    folder.mkdir(parents=True, exist_ok=True)
    log, record, outcomes = folder / "gpu.log", environment(device), []
    log.write_text("")
    for step in steps(args.rehearse):
        if args.only and step.name not in args.only:
            continue
        left = deadline - time.monotonic() - 5  # seconds to write the results
        outcomes.append(
            run_step(step, min(step.limit, left), log)
            if left > 5
            else Outcome(step.name, "left out")
        )
        write_results(folder, record, outcomes)
        print(f"{step.name}: {outcomes[-1].status}, {outcomes[-1].seconds} s", flush=True)
    print(f"\n{record['device']}, commit {record['commit']}: results in {folder}\n")
    print(summary(outcomes))
    return 0 if all(outcome.status == "ok" for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
