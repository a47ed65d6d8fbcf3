"""What every bench shares: correctness gate, interleaved timing, peak memory, record, table.

A bench cell is one variant on one shape. Its order is fixed: first the gate (the variant's output
against float64), then memory, then time; a variant that fails the gate gets no time at all, and
the bench exits with 1. Variants of one shape are timed in turn, round after round, so that a
machine that slows down slows all of them, and ratios are medians of ratios within a round.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
EPS32 = torch.finfo(torch.float32).eps
Call = Callable[[], Any]


@dataclass(frozen=True)
class Verdict:
    """Outcome of a correctness gate: largest error against float64 and what was allowed."""

    error: float
    allowed: float

    @property
    def green(self) -> bool:
        """Whether the error is within bounds (NaN never is)."""
        return self.error <= self.allowed


def gate(got: Tensor, exact: Tensor, plain: Tensor, rounding: float = 0.0) -> Verdict:
    """Judge ``got`` against float64 ``exact``: error <= 2 x error of ``plain`` + 8 eps32 x scale.

    ``plain`` is the fp32 reference on the same inputs. ``rounding`` allows for a variant that by
    design rounds its cosines (eager bf16): Smooth-Chamfer is 1-Lipschitz in them.
    """
    if got.shape != exact.shape:
        raise ValueError(f"gate: got shape {tuple(got.shape)}, expected {tuple(exact.shape)}")
    scale = float(exact.abs().max())
    error = float((got.double() - exact).abs().max())
    allowed = 2 * float((plain.double() - exact).abs().max()) + 8 * EPS32 * scale + rounding
    return Verdict(error, allowed)


def time_interleaved(
    variants: Mapping[str, Call], device: torch.device, *, seconds: float = 2.0
) -> dict[str, list[float]]:
    """Milliseconds of each variant, one sample a round; about ``seconds`` in all, 5+ rounds."""
    for call in variants.values():  # compilation, autotuning and first touches stay outside
        call()
        call()
    measure = _event_ms if device.type == "cuda" else _wall_ms
    flush = _cache_flush(device)
    first = {name: [measure(call, flush)] for name, call in variants.items()}
    round_ms = sum(samples[0] for samples in first.values())
    rounds = int(min(200, max(5, 1000 * seconds / max(round_ms, 1e-3))))
    timed: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, call in variants.items():
            timed[name].append(measure(call, flush))
    return timed


def ratio(times: Mapping[str, Sequence[float]], over: str, under: str) -> float:
    """Median over rounds of time[over] / time[under]: how many times faster ``under`` is."""
    return statistics.median(a / b for a, b in zip(times[over], times[under], strict=True))


def _wall_ms(call: Call, flush: Call) -> float:
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


def _event_ms(call: Call, flush: Call) -> float:
    flush()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end))


def _cache_flush(device: torch.device) -> Call:
    """On a GPU, overwrite more than its L2 between samples, so that inputs come from memory."""
    if device.type != "cuda":
        return lambda: None
    return torch.empty(256 << 20, dtype=torch.int8, device=device).zero_


def peak_bytes(call: Call, device: torch.device) -> int | None:
    """Memory that one call takes beyond what was there before; None where it cannot be told.

    A workspace that an implementation keeps between calls was there before.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated() - before)
    try:
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)  # else freed memory would count as there before
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark to the present
        before = _status_kib("VmRSS")
        call()
        return max(0, _status_kib("VmHWM") - before) * 1024
    except OSError:
        return None


def _status_kib(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def environment(device: torch.device) -> dict[str, Any]:
    """Record what a figure depends on: device, versions, commit, date."""
    record = {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        record |= {
            "cuda": torch.version.cuda,
            "capability": f"sm_{properties.major}{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
        }
    return record


def device_name(device: torch.device) -> str:
    """Name of the GPU, or of the processor."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def results_folder(device: torch.device) -> Path:
    """Where committed results of this device live: bench/results/<device>."""
    return ROOT / "bench" / "results" / re.sub(r"[^a-z0-9]+", "-", device_name(device).lower())


def _version(module: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(module)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Short commit hash, with a + if the tree differs from it; DIVSE_COMMIT where git is not."""
    if "DIVSE_COMMIT" in os.environ:
        return os.environ["DIVSE_COMMIT"]
    git = ["git", "-C", str(ROOT)]
    try:
        run = lambda *words: subprocess.run(  # noqa: E731
            [*git, *words], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        dirty = run("status", "--porcelain", "--untracked-files=no")
        return run("rev-parse", "--short", "HEAD") + ("+" if dirty else "")
    except (OSError, subprocess.SubprocessError):
        return None


class Report:
    """Rows of one bench: kept in files as they come, printed as a table, then one JSON line."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        """`args` are those of `parser`."""
        self.name, self.args = name, args
        self.device = torch.device(args.device)
        self.environment = environment(self.device)
        self.rows: list[dict[str, Any]] = []
        self.red: list[str] = []

    def add(self, verdict: Verdict | None = None, **row: Any) -> None:
        """Add a row; one with a red verdict must carry no figure of speed."""
        if verdict is not None:
            row |= {"error": verdict.error, "allowed": verdict.allowed}
            row["gate"] = "green" if verdict.green else "RED"
            if not verdict.green:
                self.red.append(str(row))
        self.rows.append(row)
        self.write()  # a bench that is stopped half-way leaves what it has measured

    def document(self) -> dict[str, Any]:
        """Everything as one JSON-serialisable object."""
        return {
            "bench": self.name,
            "environment": self.environment,
            "green": not self.red,
            "rows": self.rows,
        }

    def write(self) -> None:
        """Write NAME.json and NAME.md, if a folder was given."""
        if self.args.out is None:
            return
        folder = self.args.out if str(self.args.out) != "." else results_folder(self.device)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.name}.json").write_text(json.dumps(self.document(), indent=1) + "\n")
        (folder / f"{self.name}.md").write_text(markdown(self.rows))

    def finish(self) -> int:
        """Print (and write) the results; exit status 1 if any gate was red."""
        if not self.args.json:
            where = f"{self.environment['device']}, commit {self.environment['commit']}"
            print(f"\n{self.name} on {where}\n\n{markdown(self.rows)}")
        print(json.dumps(self.document()))
        self.write()
        for line in self.red:
            print(f"gate RED: {line}", file=sys.stderr)
        return 1 if self.red else 0


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table; columns in order of first appearance, blanks where missing."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, *([_cell(row.get(key)) for key in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = [
        "| " + " | ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)) + " |"
        for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.4g}"
    return str(value)


def parser(description: str | None) -> argparse.ArgumentParser:
    """Arguments that every bench takes."""
    result = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    result.add_argument("--json", action="store_true", help="print the JSON line only")
    result.add_argument(
        "--out",
        type=Path,
        nargs="?",
        const="",
        help="write NAME.json and NAME.md to this folder; without a value bench/results/<device>",
    )
    result.add_argument("--seconds", type=float, default=2.0, help="timing budget per shape")
    return result
