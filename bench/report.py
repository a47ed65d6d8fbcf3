"""What every bench reports: the record of the machine, rows as a table and one JSON line, files."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from harness import Verdict

ROOT = Path(__file__).resolve().parents[1]


def environment(device: torch.device) -> dict[str, Any]:
    """Record what a figure depends on: device, versions, commit, date."""
    record = {
        "device": device_name(device),
        "processor": processor(),
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
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def processor() -> str:
    """Family and model of an x86 processor, which a virtual machine may hide behind one name."""
    words = ("cpu family", "model")
    found = [f"{word} {value}" for word in words if (value := _cpuinfo(word))]
    return ", ".join(found) or platform.machine()


def _cpuinfo(key: str) -> str | None:
    """The first value of a key in /proc/cpuinfo."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in pairs if name.strip() == key), None)


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

    def note(self, **facts: Any) -> None:
        """Record facts of this run beside device and versions, such as measured ceilings."""
        self.environment |= facts

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
