"""NVIDIA's compute-sanitizer over bench/small_launches.py: bad memory accesses and races.

    python bench/sanitize.py [--tools memcheck racecheck] [--few] [--impl cuda]

Says so and does nothing where the tool is not installed. PyTorch's memory pool is switched off, so
that every tensor has bounds of its own.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("small_launches.py")
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
PLACES = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer")
UNABLE = ("Device not supported", "Unable to find injection", "LibraryNotLoaded")


def sanitizer() -> str | None:
    """Where the tool is."""
    found = shutil.which("compute-sanitizer")
    return found or next(
        (f for p in PLACES if (f := shutil.which("compute-sanitizer", path=p))), None
    )


def run(tool: str, command: str, words: list[str]) -> str:
    """Run one tool -> "clean", "unable: ..." or what it found."""
    call = [command, "--tool", tool, "--error-exitcode", "99"]
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(
        [*call, sys.executable, str(SCRIPT), "--device", "cuda", "--json", *words],
        capture_output=True,
        text=True,
        env=environment,
    )
    output = done.stdout + done.stderr
    if any(text in output for text in UNABLE):
        return "unable: the tool does not support this machine"
    if done.returncode == 0:
        return "clean"
    print(re.sub(r"^\{.*$", "", output, flags=re.MULTILINE)[-6000:])
    summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", output)
    return summary[-1] if summary else f"exit status {done.returncode}"


def main() -> int:
    """Run the tools one after the other; 1 if one found something."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--tools", nargs="+", choices=TOOLS, default=["memcheck", "racecheck"])
    arguments.add_argument("--few", action="store_true", help="the smallest shapes alone")
    arguments.add_argument("--impl", choices=("triton", "cuda"), default="triton")
    args = arguments.parse_args()
    command = sanitizer()
    if command is None:
        print("compute-sanitizer is not installed: nothing was checked")
        return 0
    verdicts = {}
    for tool in args.tools:
        verdicts[tool] = run(tool, command, ["--impl", args.impl, *["--few"] * args.few])
        print(f"{tool}: {verdicts[tool]}", flush=True)
    print("; ".join(f"{tool} {verdict}" for tool, verdict in verdicts.items()))
    return int(any(v != "clean" and not v.startswith("unable") for v in verdicts.values()))


if __name__ == "__main__":
    sys.exit(main())
