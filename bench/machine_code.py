"""Listings of compiled kernels, by the tools that Triton brings."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

import triton

MATMULS = ("HGMMA", "IGMMA", "HMMA", "IMMA", "UTCHMMA", "UTCIMMA")
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


def inner_loop(sass: str) -> int:
    """Instructions of the shortest loop that multiplies on tensor cores; 0 if there is none."""
    line = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+((?:@!?U?P\w+ )?[A-Z].*?);", re.MULTILINE)
    code = [(int(at, 16), text) for at, text in line.findall(sass)]
    matmul = [at for at, text in code if any(word in text for word in MATMULS)]
    found = []
    for at, text in code:
        jump = re.search(r"BRA[.\w]* (?:U?P\w+, )?(0x[0-9a-f]+)", text)
        if jump and (start := int(jump.group(1), 16)) < at and any(start <= m < at for m in matmul):
            found.append(sum(start <= place <= at for place, _ in code))
    return min(found, default=0)
