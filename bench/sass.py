"""What the GPU kernels compile to, on a machine with no GPU: registers, spills, instructions.

    python bench/sass.py                     a table of every case of sass_cases.py
    python bench/sass.py --only sm_90 K=4    those whose operation, kernel, arch, shape say so
    python bench/sass.py --json              a list of {operation, kernel, arch, shape, ...}
    python bench/sass.py --budgets           guarded cases on sm_90 against sass_budgets.json
    python bench/sass.py --update-budgets    write what this version of Triton makes of them
    python bench/sass.py --cuda              the CUDA kernels as nvcc makes them, if it is there
    python bench/sass.py --model             the model of speed, measured and predicted
    python bench/sass.py --predict           its prediction for these kernels on an H100
    python bench/sass.py --predict-cuda      the same for the CUDA kernels
    python bench/sass.py --goals             and for search, candidates and the triplet loss
    python bench/sass.py --update-page       write all of these into docs/kernels.md

Every kernel is compiled as its launcher would launch it, by the ptxas that Triton brings, and its
machine code is counted. Exits with 1 if a kernel could not be launched or, with --budgets, if a
guarded one spills or is 10% over its budget.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)  # interpreted kernels have no machine code

import sass_cuda
import triton
from dry_launch import CAPABILITIES, Launch, absent_device, recorded
from machine_code import MATMULS, cuobjdump, inner_loop, opcodes
from sass_cases import GUARDED, OPERATIONS, OTHERS, Case, predicted

SHARED = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10}  # bytes of one block
TENSOR_MEMORY = 512  # columns
BUDGETS = Path(__file__).with_name("sass_budgets.json")
PAGE = Path(__file__).parents[1] / "docs" / "kernels.md"
BUDGETED = ("registers", "mufu", "instructions")
ALLOWED = 1.1  # times its budget


def count(launch: Launch) -> dict[str, Any]:
    """What the machine code of a launch holds."""
    kernel = launch.kernel
    usage = cuobjdump("--dump-resource-usage", kernel.asm["cubin"])
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    listing = cuobjdump("--dump-sass", kernel.asm["cubin"])
    names = opcodes(listing)
    found = collections.Counter(names)
    matmul = [i for i, name in enumerate(names) if name in MATMULS]
    return {
        "kernel": launch.name,
        "tile": "x".join(str(launch.constants[b]) for b in launch.blocks),
        "warps": kernel.metadata.num_warps,
        "persistent": bool(launch.constants.get("PERSISTENT", False)),
        "registers": int(registers),
        "spills": int(stack),
        "spill_instructions": found["LDL"] + found["STL"],
        "shared": kernel.metadata.shared,
        "tensor_memory": getattr(kernel.metadata, "tmem_size", 0) or 0,
        "instructions": len(names),
        "epilogue": len(names) - 1 - matmul[-1] if matmul else len(names),
        "loop": inner_loop(listing),
        "matmul": len(matmul),
        "mufu": found["MUFU"],
        "shfl": found["SHFL"],
        "sts": found["STS"] + found["STSM"],
    }


def measure(case: Case, arch: str) -> list[dict[str, Any]]:
    """Compile what a case launches and count, one record a kernel; inside `absent_device`."""
    with recorded() as launched:
        OPERATIONS[case.operation](case)
    head = {"operation": case.operation, "arch": arch, "shape": case.shape}
    first = {launch.name: launch for launch in reversed(launched)}  # launched again: the same
    return [head | count(launch) for launch in reversed(first.values())]


def measure_all(cases: Iterable[Case], arch: str) -> list[dict[str, Any]]:
    """Records of all cases on one architecture."""
    with absent_device(arch), ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda case: measure(case, arch), cases)
        return [record for records in found for record in records]


def faults(record: dict[str, Any]) -> list[str]:
    """Why a kernel is not fit to ship; too little memory is otherwise noticed at its launch."""
    found = []
    if record["shared"] > SHARED[record["arch"]]:
        found.append(f"needs {record['shared']} bytes of shared memory")
    if record["tensor_memory"] > TENSOR_MEMORY:
        found.append(f"needs {record['tensor_memory']} columns of tensor memory")
    return [f"{name(record)} on {record['arch']} {text}" for text in found]


def name(record: dict[str, Any]) -> str:
    """What a budget is filed under."""
    if "shape" not in record:  # a CUDA kernel serves all shapes
        return record["kernel"]
    return f"{record['kernel']}: {record['operation']} {record['shape']}"


def triton_minor() -> str:
    """The version of Triton that decides what kernels compile to, such as 3.6."""
    return ".".join(triton.__version__.split(".")[:2])


def budgets() -> dict[str, dict[str, dict[str, int]]]:
    """By Triton's minor version and kernel: {registers, mufu, instructions} on sm_90.

    A kernel that spills with one version, and is known to, has its bytes there as `spills`.
    """
    return json.loads(BUDGETS.read_text()) if BUDGETS.exists() else {}


def overspent(record: dict[str, Any], budget: dict[str, int] | None) -> list[str]:
    """Where a guarded kernel is over its budget: no spill that is not known, nothing 10% over."""
    if budget is None:
        return [f"{name(record)} has no budget: run python bench/sass.py --update-budgets"]
    known = budget.get("spills", 0)
    texts = [f"spills {record['spills']} bytes"] if record["spills"] > known else []
    texts += [
        f"{what} {record[what]}, budget {budget[what]}"
        for what in BUDGETED
        if record[what] > ALLOWED * budget[what]
    ]
    return [f"{name(record)}: {text}" for text in texts]


def update_budgets() -> None:
    """Make what this version of Triton compiles today the budget."""
    records = measure_all(GUARDED, "sm_90")
    entry = {
        name(r): {what: r[what] for what in (*BUDGETED, *(["spills"] if r["spills"] else []))}
        for r in records
    }
    document = budgets() | {triton_minor(): entry}
    if sass_cuda.compiler():
        document[sass_cuda.version()] = sass_cuda.entry()
    document = dict(sorted(document.items()))
    BUDGETS.write_text(json.dumps(document, indent=1) + "\n")
    for record in records:
        if record["spills"]:
            print(f"{name(record)} spills {record['spills']} bytes", file=sys.stderr)


def check_budgets() -> list[str]:
    """Every way in which a guarded kernel is over its budget."""
    known = budgets().get(triton_minor())
    if known is None:
        return [f"no budgets for Triton {triton_minor()}, only for {', '.join(budgets())}"]
    wrong = over(measure_all(GUARDED, "sm_90"), known)
    if sass_cuda.compiler() and sass_cuda.version() in budgets():
        wrong += over(sass_cuda.records(), budgets()[sass_cuda.version()])
    return wrong


def over(records: list[dict[str, Any]], known: dict[str, dict[str, int]]) -> list[str]:
    """Where kernels are over their budgets."""
    return [text for r in records for text in overspent(r, known.get(name(r)))]


COLUMNS = {
    "operation": 17,
    "kernel": 26,
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
}


def row(record: dict[str, Any] | None = None) -> str:
    """One line of the table; the heading without a record."""
    cells = []
    for column, width in COLUMNS.items():
        value = column if record is None else record.get(column, "")
        cells.append(str(value).rjust(width) if isinstance(value, int) else value.ljust(width))
    return " ".join(cells).rstrip()


def predict() -> str:
    """The model's prediction for these kernels, and what it is made of, as text."""
    from report import markdown
    from sass_model import in_products, prediction

    grid = predicted()
    with_record = zip(grid, measure_all(grid, "sm_90"), strict=True)
    by_shape = {(case.operation, case.shape): case for case in GUARDED}
    others = [
        in_products(by_shape[record["operation"], record["shape"]], record)
        for record in measure_all(GUARDED, "sm_90")
    ]
    note = f"Triton {triton.__version__}. A model's prediction for one H100, not a measurement.\n"
    tables = markdown([prediction(case, record) for case, record in with_record]), markdown(others)
    return "\n".join([*tables, note])


def predict_cuda() -> str:
    """The model's prediction for the CUDA kernels as text."""
    from report import markdown
    from sass_model import of_turns

    by_size = {r["K"]: r for r in sass_cuda.records() if (r["dtype"], r["factors"]) == ("bf16", 4)}
    rows = [of_turns(case, by_size[case.k]) for case in predicted()]
    note = f"{sass_cuda.version()}. A model's prediction for one H100, not a measurement.\n"
    return f"{markdown(rows)}\n{note}"


def goals() -> str:
    """The model's say on the goals beyond all pairs, as text."""
    import sass_goals
    from report import markdown

    rows = sass_goals.rows(measure_all(sass_goals.cases(), "sm_90"))
    note = f"Triton {triton.__version__}. A model's prediction for one H100, not a measurement.\n"
    return f"{markdown(rows)}\n{note}"


def update_page() -> None:
    """Write the tables of the model into docs/kernels.md, between their marks."""
    from sass_model import report

    text = PAGE.read_text()
    parts = {"--predict": predict(), "--model": report() + "\n", "--goals": goals()}
    if sass_cuda.compiler():
        parts["--predict-cuda"] = predict_cuda()
    for option, found in parts.items():
        start = f"<!-- python bench/sass.py {option} -->\n"
        head, _, rest = text.partition(start)
        text = head + start + found + rest[rest.index("<!-- end -->") :]
    PAGE.write_text(text)


def arguments() -> argparse.Namespace:
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--json", action="store_true", help="print a list instead of a table")
    result.add_argument(
        "--only", nargs="+", default=[], metavar="WORD", help="words of operation, arch and shape"
    )
    what = result.add_mutually_exclusive_group()
    options = ("budgets", "update-budgets", "cuda", "model", "predict", "predict-cuda", "goals")
    for option in (*options, "update-page"):
        what.add_argument(f"--{option}", action="store_true")
    return result.parse_args()


def main() -> int:
    """Do as the docstring says."""
    args = arguments()
    if args.model:
        from sass_model import report

        print(report())
    elif args.predict:
        print(predict())
    elif args.goals:
        print(goals())
    elif args.predict_cuda or args.cuda:
        return tell_cuda(args)
    elif args.update_budgets:
        update_budgets()
    elif args.update_page:
        update_page()
    else:
        return judge(args)
    return 0


def tell_cuda(args: argparse.Namespace) -> int:
    """Print what nvcc makes of the CUDA kernels, or what the model says of that."""
    from report import markdown

    if not sass_cuda.compiler():
        print("nvcc is not installed: there is nothing to count", file=sys.stderr)
        return 1
    if args.predict_cuda:
        print(predict_cuda())
    else:
        records = sass_cuda.records()
        print(json.dumps(records, indent=1) if args.json else markdown(records))
    return 0


def judge(args: argparse.Namespace) -> int:
    """Budgets or table; 1 if a kernel has a fault."""
    wrong = check_budgets() if args.budgets else table(args)
    for text in wrong:
        print(text, file=sys.stderr)
    return int(bool(wrong))


def table(args: argparse.Namespace) -> list[str]:
    """Print the chosen cases -> their faults."""
    records = []
    for arch in CAPABILITIES:
        words = set(args.only) - {arch}
        if not set(args.only) & (set(CAPABILITIES) - {arch}):
            chosen = [c for c in GUARDED + OTHERS if words <= {c.operation, *c.shape.split()}]
            records += measure_all(chosen, arch)
    if args.json:
        print(json.dumps(records, indent=1))
    else:
        print(row(), *map(row, records), f"Triton {triton.__version__}", sep="\n")
    return [text for record in records for text in faults(record)]


if __name__ == "__main__":
    sys.exit(main())
