"""What nvcc makes of the CUDA kernels of csrc/cuda: records as bench/sass.py has them, no GPU.

The kernels' budgets stand in sass_budgets.json under the version of nvcc; `python bench/sass.py
--cuda` prints the records, `--predict` what the model says of them.
"""

from __future__ import annotations

import collections
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from machine_code import cuobjdump, inner_loop, opcodes

SOURCE = Path(__file__).parents[1] / "csrc" / "cuda" / "scores.cu"
ARCH = "-gencode=arch=compute_90a,code=sm_90a"
NAME = re.compile(r"smooth_chamferI(?P<type>.+?)Li(?P<size>\d+)ELi(?P<factors>\d+)E")
KINDS = {"6__half": "fp16", "13__nv_bfloat16": "bf16"}


def compiler() -> str | None:
    """Where nvcc is."""
    return shutil.which("nvcc")


def version() -> str:
    """What budgets are filed under, such as "nvcc 13.0"."""
    text = subprocess.run([compiler(), "--version"], capture_output=True, text=True).stdout
    return "nvcc " + re.search(r"release (\d+\.\d+)", text).group(1)


def compiled() -> bytes:
    """The machine code of all kernels for sm_90a; what the assembler complains of is an error."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        command = [compiler(), "-std=c++17", "-O3", ARCH, "-cubin", "-o", file.name, str(SOURCE)]
        done = subprocess.run(command, capture_output=True, text=True)
        complaints = ("warning", "potential performance loss", "(c75")
        if done.returncode or any(word in done.stderr.lower() for word in complaints):
            raise RuntimeError(done.stderr)
        return Path(file.name).read_bytes()


def records() -> list[dict[str, Any]]:
    """One for each kernel."""
    cubin = compiled()
    usage = by_function(cuobjdump("--dump-resource-usage", cubin), r"Function (\S+):")
    code = by_function(cuobjdump("--dump-sass", cubin), r"Function : (\S+)")
    found = [record(name, usage[name], text) for name, text in code.items() if NAME.search(name)]
    return sorted(found, key=lambda r: (r["dtype"], r["K"], -r["factors"]))


def by_function(text: str, heading: str) -> dict[str, str]:
    """Parts of a listing by the function that their heading names."""
    parts = re.split(heading, text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def record(name: str, usage: str, listing: str) -> dict[str, Any]:
    """Counts of a kernel, of its whole code: the listing does not say where its fold begins."""
    kind = NAME.search(name)
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    names = opcodes(listing)
    counts = collections.Counter(names)
    size, factors = int(kind["size"]), int(kind["factors"])
    return {
        "kernel": f"smooth_chamfer K={size} {KINDS[kind['type']]} factors={factors}",
        "K": size,
        "dtype": KINDS[kind["type"]],
        "factors": factors,
        "registers": int(registers),
        "spills": int(stack),
        "spill_instructions": counts["LDL"] + counts["STL"],
        "instructions": len(names),
        "loop": inner_loop(listing),
        "matmul": counts["HGMMA"],
        "mufu": counts["MUFU"],
        "shfl": counts["SHFL"],
    }


def entry() -> dict[str, dict[str, int]]:
    """Budgets as this compiler makes the kernels today."""
    return {
        r["kernel"]: {w: r[w] for w in ("registers", "mufu", "instructions")} for r in records()
    }
