"""What the GPU kernels compile to, on a machine with no GPU: registers, spills, instructions.

    python bench/sass.py            a table
    python bench/sass.py --json     a list of {kernel, arch, shape, registers, spills, ...}

Every Triton kernel is compiled with its tuned configuration for sm_80, sm_90 and sm_100, by the
ptxas that Triton brings, and its machine code is counted. Exits with 1 if a kernel at K=4 spills
or if any could not be launched.

For the forward kernel on sm_90 a model fitted to measurements on one H100 predicts its speed as a
ratio to the bare matmul of cuBLAS (see `predicted_ratio`); it is a prediction, not a measurement.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # interpreted kernels have no machine code

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from divse_kernels import smooth_chamfer_backward, smooth_chamfer_forward
from divse_kernels.problem import Problem, family, padded
from divse_kernels.tuning import Tile, backward_tile, forward_tile

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
SHARED = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10}  # bytes of one block
TENSOR_MEMORY = 512  # columns
CAPABILITIES = {"sm_80": (8, 0), "sm_90": (9, 0), "sm_100": (10, 0)}
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SCORES, TRAINING, FEW = (1024, 65_536), (128, 640), (1, 1_000_000)  # query sets, gallery sets
POINTERS = {
    "score_ptr": "*fp32",
    "grad_score_ptr": "*fp32",
    "grad_scale_ptr": "*fp32",
    "moment_ptr": "*fp32",
    "row_lengths_ptr": "*i64",
    "column_lengths_ptr": "*i64",
}


@dataclass(frozen=True)
class Case:
    """One kernel as one architecture would run it."""

    kernel: str
    arch: str
    k: int
    dims: int
    alpha: float | None = 16.0
    dtype: str = "bf16"
    sets: tuple[int, int] = SCORES
    ragged: bool = False

    @property
    def shape(self) -> str:
        """Sizes and variant in words."""
        alpha = "tensor" if self.alpha is None else f"{self.alpha:g}"
        text = f"{self.sets[0]}x{self.sets[1]} K={self.k} D={self.dims} {self.dtype} alpha={alpha}"
        return text + " ragged" * self.ragged

    @property
    def moment(self) -> bool:
        """Whether alpha is learned, so that the backward kernel serves its gradient too."""
        return self.alpha is None

    @property
    def problem(self) -> Problem:
        """What a launcher would describe, the larger side along the rows."""
        return Problem(
            arch=family(CAPABILITIES[self.arch]),
            dtype=TYPES[self.dtype],
            dims=self.dims,
            row_sets=max(self.sets),
            row_size=self.k,
            column_sets=min(self.sets),
            column_size=self.k,
            alpha=self.alpha,
            row_ragged=self.ragged,
            column_ragged=self.ragged,
        )

    @property
    def tile(self) -> Tile:
        """The tuned configuration."""
        forward = self.kernel == "smooth_chamfer_forward"
        return forward_tile(self.problem) if forward else backward_tile(self.problem)


def cases() -> list[Case]:
    """Every kernel, architecture and kind of path that ships."""
    found = []
    for kernel in ("smooth_chamfer_forward", "smooth_chamfer_backward"):
        alphas = (30.0, 60.0, 200.0, None) if kernel == "smooth_chamfer_forward" else (200.0, None)
        for arch in CAPABILITIES:
            found += [Case(kernel, arch, 4, dims) for dims in (256, 512, 1024)]
            found += [Case(kernel, arch, 4, 1024, alpha) for alpha in alphas]
            found += [
                Case(kernel, arch, 4, 1024, sets=TRAINING),
                Case(kernel, arch, 4, 1024, ragged=True),
                Case(kernel, arch, 4, 1024, dtype="fp16"),
                Case(kernel, arch, 4, 1024, dtype="fp32"),
                Case(kernel, arch, 4, 1024, sets=FEW),
                Case(kernel, arch, 6, 1024),
                Case(kernel, arch, 32, 128),
            ]
    return found


def source(case: Case, tile: Tile) -> ASTSource:
    """The kernel with the types and the compile-time arguments that its launcher would give it."""
    if case.kernel == "smooth_chamfer_forward":
        function = smooth_chamfer_forward.smooth_chamfer_forward
        fixed = smooth_chamfer_forward.constants(case.problem, tile, log_mean=False)
    else:
        function = smooth_chamfer_backward.smooth_chamfer_backward
        scaled = case.dtype == "fp16"
        fixed = smooth_chamfer_backward.constants(case.problem, tile, scaled, case.moment)
        if not scaled:
            fixed["grad_scale_ptr"] = None
        if not case.moment:
            fixed["moment_ptr"] = None
    if not case.ragged:
        fixed |= {"row_lengths_ptr": None, "column_lengths_ptr": None}
    fixed["stride_score_column"] = 1
    types = {name: _type(name, case) for name in function.arg_names}
    aligned = [n for n, t in types.items() if t[0] == "*" or n == "D" or n.startswith("stride")]
    index = function.arg_names.index
    return ASTSource(
        fn=function,
        signature={n: "constexpr" if n in fixed else t for n, t in types.items()},
        constexprs={(index(name),): value for name, value in fixed.items()},
        attrs={(index(n),): [["tt.divisibility", 16]] for n in aligned if n not in fixed},
    )


def _type(name: str, case: Case) -> str:
    if name == "alpha":
        return "*fp32" if case.alpha is None else "fp32"
    if name.endswith("_ptr"):
        return POINTERS.get(name, f"*{case.dtype}")
    return "i32"


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


def measure(case: Case, tile: Tile | None = None) -> dict[str, Any]:
    """Compile a case and count; a `tile` replaces the tuned one."""
    tile = tile or case.tile
    major, minor = CAPABILITIES[case.arch]
    target = GPUTarget("cuda", major * 10 + minor, 32)
    compiled = triton.compile(source(case, tile), target=target, options=tile.options)
    usage = cuobjdump("--dump-resource-usage", compiled.asm["cubin"])
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    names = opcodes(cuobjdump("--dump-sass", compiled.asm["cubin"]))
    count = collections.Counter(names)
    matmul = [i for i, name in enumerate(names) if name in ("HGMMA", "HMMA", "UTCHMMA")]
    record = {
        "kernel": case.kernel,
        "arch": case.arch,
        "shape": case.shape,
        "tile": f"{tile.block_m}x{tile.block_n}x{tile.block_d}",
        "warps": tile.num_warps,
        "registers": int(registers),
        "spills": int(stack),
        "spill_instructions": count["LDL"] + count["STL"],
        "shared": compiled.metadata.shared,
        "tensor_memory": getattr(compiled.metadata, "tmem_size", 0) or 0,
        "instructions": len(names),
        "epilogue": len(names) - 1 - matmul[-1] if matmul else len(names),
        "matmul": len(matmul),
        "mufu": count["MUFU"],
        "shfl": count["SHFL"],
        "sts": count["STS"] + count["STSM"],
    }
    if case.kernel == "smooth_chamfer_forward" and case.arch == "sm_90" and case.sets == SCORES:
        record["predicted_ratio"] = predicted_ratio(record, case, tile)
    return record


def faults(record: dict[str, Any]) -> list[str]:
    """Why a kernel is not fit to ship; too little memory is otherwise noticed at its launch."""
    found = []
    if record["spills"] and " K=4 " in record["shape"]:
        found.append(f"spills {record['spills']} bytes")
    if record["shared"] > SHARED[record["arch"]]:
        found.append(f"needs {record['shared']} bytes of shared memory")
    if record["tensor_memory"] > TENSOR_MEMORY:
        found.append(f"needs {record['tensor_memory']} columns of tensor memory")
    if not record["matmul"] and "fp32" not in record["shape"]:
        found.append("has no matrix products")
    return [f"{record['kernel']} {record['arch']} {record['shape']}: {text}" for text in found]


def predicted_ratio(record: dict[str, Any], case: Case, tile: Tile) -> float | None:
    """Predicted time of cuBLAS's bf16 matmul alone / time of this kernel, on an H100.

    Measured there, per 32,768 cosines at D = 1024 and 256: a kernel with the same loop but a plain
    maximum as its epilogue took 23,080 and 7,910 cycles, cuBLAS 0.96 and 0.98 of that. What the
    epilogue adds costs the larger of its issue slots and of its special functions (16 lanes a
    cycle and processor); that reproduced the measured 0.66 and 0.41 of a first version.
    """
    fitted = 256 <= case.dims <= 1024 and case.dtype != "fp32" and case.k == padded(case.k)
    if not fitted or tile.block_m * tile.block_n != 32_768 or tile.num_warps != 8:
        return None
    slope = (23_080 - 7_910) / (1024 - 256)
    loop = 7_910 + slope * (case.dims - 256)
    matmul = loop * (0.98 - 0.02 * (case.dims - 256) / (1024 - 256))
    extra = record["epilogue"] - MAXIMUM_EPILOGUE
    return round(matmul / (loop + max(2 * extra, 16 * record["mufu"])), 2)


#: Instructions after the last matrix product in the kernel whose epilogue was a plain maximum.
MAXIMUM_EPILOGUE = 300

COLUMNS = {
    "kernel": 24,
    "arch": 7,
    "shape": 48,
    "tile": 11,
    "warps": 5,
    "registers": 9,
    "spills": 6,
    "shared": 7,
    "instructions": 12,
    "epilogue": 8,
    "mufu": 5,
    "shfl": 5,
    "sts": 4,
    "predicted_ratio": 15,
}


def row(record: dict[str, Any] | None = None) -> str:
    """One line of the table; the heading without a record."""
    cells = []
    for name, width in COLUMNS.items():
        value = name if record is None else record.get(name, "")
        text = "" if value is None else str(value)
        cells.append(text.rjust(width) if isinstance(value, int | float) else text.ljust(width))
    return " ".join(cells).rstrip()


def main() -> int:
    """Compile everything and print; 1 if a kernel has a fault."""
    parser = argparse.ArgumentParser(description="What the GPU kernels compile to, without a GPU.")
    parser.add_argument("--json", action="store_true", help="print a list instead of a table")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="WORD", help="words of kernel, arch and shape"
    )
    arguments = parser.parse_args()
    chosen = [c for c in cases() if set(arguments.only) <= {c.kernel, c.arch, *c.shape.split()}]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        records = list(pool.map(measure, chosen))
    if arguments.json:
        print(json.dumps(records, indent=1))
    else:
        print(row(), *map(row, records), sep="\n")
        print(f"Triton {triton.__version__}; predicted_ratio is a model's, not a measurement.")
    wrong = [text for record in records for text in faults(record)]
    for text in wrong:
        print(text, file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
