"""Listings of compiled kernels, by the tools that Triton brings."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def cuobjdump(option: str, cubin: bytes) -> str:
    """What NVIDIA's tool says about machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(TOOLS / "cuobjdump"), option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def opcodes(sass: str) -> list[str]:
    """The instructions of a listing, without operands and modifiers."""
    line = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_]*)", re.MULTILINE)
    return [name for name in line.findall(sass) if name != "NOP"]
