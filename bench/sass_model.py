"""A model of speed on one H100, its error against everything measured there, and what it predicts.

`python bench/sass.py --model` prints the first, `--predict` the second. All measurements are of
one H100 80GB HBM3 with torch 2.11 and triton 3.6 on prototypes of these kernels, medians. A tile
is 32,768 cosines of 8 warps, one block a multiprocessor at 1.7 GHz; its cycles are

    LOOP_BASE + LOOP_SLOPE * D       the loop with a plain maximum as its epilogue (fitted: 2 rows)
  + max(2 * instructions, 16 * MUFU) what another epilogue adds, after the loop: 8 warps share
                                     4 issue slots and 16 lanes of special functions

where two resident blocks of half a tile and 4 warps count as one. `hidden` is the larger of the
three in place of their sum: what perfect overlap would give. A persistent kernel, or two blocks a
multiprocessor, lie somewhere between. Everything else is the larger of operations at the measured
bf16 rate and bytes at the measured read rate; formulas in plain torch also move some bytes a cosine
at the measured copy rate (fitted to one row each).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from report import markdown
from sass_cases import Case

PEAK, READ, COPY = 682e12, 3.08e12, 3.03e12  # operations and bytes a second, measured
CLOCK, PROCESSORS, SHARED_MEMORY = 1.7e9, 132, 227 << 10
TILE = 32_768  # cosines
LOOP_SLOPE = (23_080 - 7_910) / (1024 - 256)  # cycles a dimension
LOOP_BASE = 7_910 - 256 * LOOP_SLOPE
CUBLAS_SLOPE = (22_220 - 7_807) / (1024 - 256)  # 3.25 and 2.28 ms, in cycles for as many cosines
CUBLAS_BASE = 7_807 - 256 * CUBLAS_SLOPE
# The same maximum in a persistent kernel that loads by TMA: 0.99 and 1.05 of cuBLAS's speed.
TMA_SLOPE = (22_220 / 0.99 - 7_807 / 1.05) / (1024 - 256)
TMA_BASE = 7_807 / 1.05 - 256 * TMA_SLOPE
STAGE = 64  # dimensions of a step of the CUDA kernel's loop
# The kernel whose epilogue is a plain maximum: instructions after its last product, and in all.
MAXIMUM, MAXIMUM_ALL = 300, 1210
EAGER, COMPILED = 142.0, 11.2  # bytes a cosine: scores in torch
EAGER_LOSS, COMPILED_LOSS = 250.0, 31.8  # forward and backward of a loss, beside three products
EAGER_PEAK, EAGER_PEAK_BASE = 23.5, 0.34  # bytes a cosine, GiB: its memory
GIB = 2**30

SCORES = ((1024, 65_536, 1024), (1024, 131_072, 256))  # queries, gallery, D; all with K = 4
FIRST, LG2 = 10_704, 2_880  # cycles that the prototypes' epilogues add, from their SASS


@dataclass(frozen=True)
class Row:
    """A measured figure and what the model says; `predicted` is None where it has no say."""

    what: str
    measured: float
    predicted: float | None
    unit: str = "ms"
    note: str = ""

    @property
    def cells(self) -> dict[str, Any]:
        """Of the table."""
        error = None if self.predicted is None else f"{self.predicted / self.measured - 1:+.1%}"
        return {
            "what": self.what,
            "measured": f"{self.measured:g} {self.unit}",
            "predicted": None if self.predicted is None else f"{self.predicted:.3g} {self.unit}",
            "error": error,
            "note": self.note,
        }


def loop_cycles(dims: int) -> float:
    """Cycles of a tile whose epilogue is a plain maximum."""
    return LOOP_BASE + LOOP_SLOPE * dims


def cublas_cycles(dims: int) -> float:
    """Cycles that cuBLAS takes for as many cosines, which it writes in bf16; fitted."""
    return CUBLAS_BASE + CUBLAS_SLOPE * dims


def floor_cycles(dims: int) -> float:
    """Cycles of a tile at the measured bf16 rate."""
    return 2 * TILE * dims / PEAK * PROCESSORS * CLOCK


def tiled_ms(queries: int, gallery: int, dims: int, extra: float, passes: int = 1) -> float:
    """Time of a tiled kernel over all pairs of sets of 4 that reads its inputs `passes` times."""
    tiles = 16 * queries * gallery / TILE
    compute = tiles / PROCESSORS * (loop_cycles(dims) + extra) / CLOCK
    return 1000 * max(compute, passes * 8 * (queries + gallery) * dims / READ)


def matmul_ms(queries: int, gallery: int, dims: int) -> float:
    """Time of the bare product of all elements, written in bf16."""
    cosines = 16.0 * queries * gallery
    moved = 8 * (queries + gallery) * dims + 2 * cosines
    return 1000 * max(2 * cosines * dims / PEAK, moved / READ)


def torch_ms(queries: int, gallery: int, dims: int, moved: float, products: int = 1) -> float:
    """Time of a formula in torch that moves so many bytes a cosine beside its products."""
    return products * matmul_ms(queries, gallery, dims) + 16e3 * queries * gallery * moved / COPY


def all_pairs() -> Iterator[Row]:
    """The first table of the measurements."""
    measured = {
        "matmul": (3.25, 2.28),
        "eager": (53.5, 102.0),
        "compiled": (7.2, 10.5),
        "maximum": (3.37, 2.31),
        "tma": (3.25 / 0.99, 2.28 / 1.05),
        "first": (4.93, 5.59),
    }
    for i, shape in enumerate(SCORES):
        text = f"{shape[0]} x {shape[1]:,} K=4 D={shape[2]}"
        fitted = "fitted" if i == 0 else ""
        value = {name: ms[i] for name, ms in measured.items()}
        hidden = "" if i == 0 else "its writes are not hidden; fitted where a ratio to it is told"
        yield Row(f"cuBLAS alone, {text}", value["matmul"], matmul_ms(*shape), note=hidden)
        yield Row(f"eager, {text}", value["eager"], torch_ms(*shape, EAGER), note=fitted)
        yield Row(f"compiled, {text}", value["compiled"], torch_ms(*shape, COMPILED), note=fitted)
        yield Row(f"maximum, {text}", value["maximum"], tiled_ms(*shape, 0), note="fitted")
        loop = "another loop (TMA, persistent): nothing was fitted to it"
        yield Row(f"maximum by TMA, {text}", round(value["tma"], 2), None, note=loop)
        yield Row(f"first fused kernel, {text}", value["first"], tiled_ms(*shape, FIRST))


def few_queries() -> Iterator[Row]:
    """1 to 64 queries against a million sets, K=4, D=1024: memory decides."""
    measured = {
        1: (3.00, 3.82, 2.72),
        4: (3.08, 6.27, 2.76),
        16: (3.27, 15.8, 2.86),
        64: (3.91, None, 6.76),
    }
    for queries, (matmul, eager, fused) in measured.items():
        shape, text = (queries, 1 << 20, 1024), f"{queries} x 1M K=4 D=1024"
        yield Row(f"cuBLAS alone, {text}", matmul, matmul_ms(*shape))
        if eager is not None:
            yield Row(f"eager, {text}", eager, torch_ms(*shape, EAGER))
        # 256 rows were two tiles, and the gallery was read for each
        passes, extra = (2, FIRST) if queries == 64 else (1, 0.0)
        note = "read twice; loads and epilogue add up" if queries == 64 else ""
        yield Row(f"fused, {text}", fused, tiled_ms(*shape, extra, passes), note=note)
    peer, text = (1, 1 << 18, 1024), "1 x 262,144 K=4 D=1024"
    yield Row(f"cuBLAS alone, {text}", 0.76, matmul_ms(*peer))
    yield Row(f"fused, {text}", 0.72, tiled_ms(*peer, 0.0))
    why = "one program a pair of sets: its latency, not a rate, decides"
    yield Row(f"flash-maxsim 0.3.0, {text}", 5.63, None, note=why)


def losses() -> Iterator[Row]:
    """Hardest-negative triplet loss, forward and backward, K=4, D=1024."""
    measured = {
        1024: (1.79, 1.07, 0.054, 0.70),
        2048: (6.26, 1.40, 0.207, 1.81),
        4096: (24.6, 5.24, 0.846, 6.22),
    }
    for batch, (eager, compiled, product, peak) in measured.items():
        shape, text = (batch, batch, 1024), f"batch {batch} K=4 D=1024"
        fitted = "fitted" if batch == 4096 else ""
        launches = "" if batch > 1024 else "launches, which the model leaves out, decide"
        memory = EAGER_PEAK * 16 * batch**2 / GIB + EAGER_PEAK_BASE
        yield Row(f"one product, {text}", product, matmul_ms(*shape))
        yield Row(f"eager loss, {text}", eager, torch_ms(*shape, EAGER_LOSS, 3), note=fitted)
        ms = torch_ms(*shape, COMPILED_LOSS, 3)
        yield Row(f"compiled loss, {text}", compiled, ms, note=fitted or launches)
        both = "fitted" if batch > 1024 else ""
        yield Row(f"memory of the eager loss, {text}", peak, memory, "GiB", both)


def inputs() -> Iterator[Row]:
    """Figures that the model starts from, and those that are no times."""
    for what, value, unit in (
        ("copy (read + write)", COPY / 1e12, "TB/s"),
        ("read", READ / 1e12, "TB/s"),
        ("bf16 product, 8192 cubed", PEAK / 1e12, "TFLOP/s"),
    ):
        yield Row(what, value, value, unit, "taken as it is")
    for what, value in (("fused kernel", 1.4e-7), ("eager bf16", 2e-4)):
        yield Row(f"error of the {what}", value, None, "", "accuracy, not time")


def rows() -> list[Row]:
    """Every measured figure beside the model's."""
    return [*inputs(), *all_pairs(), *few_queries(), *losses()]


def report() -> str:
    """The table, and how far off the model is where nothing was fitted."""
    found = rows()
    free = [
        abs(r.predicted / r.measured - 1)
        for r in found
        if r.predicted is not None and not r.note.startswith(("fitted", "taken"))
    ]
    summary = (
        f"{len(found)} figures: {sum(r.predicted is None for r in found)} not covered, "
        f"{len(free)} predicted without being fitted: median error "
        f"{sorted(free)[len(free) // 2]:.1%}, largest {max(free):.1%}"
    )
    return markdown([r.cells for r in found]) + "\n" + summary


#: Goals for a ratio to cuBLAS and for the share of the compute floor, by K and D.
GOALS = {(4, 1024): ("x cuBLAS", 0.92), (4, 256): ("of floor", 0.70), (32, 128): ("of floor", 0.50)}


def shared_by_two(record: dict[str, Any]) -> bool:
    """Whether two blocks of 4 warps, each half a tile, fit on a multiprocessor."""
    rows_, columns = (int(side) for side in record["tile"].split("x")[:2])
    halves = 2 * rows_ * columns == TILE and record["warps"] == 4
    return halves and record["registers"] <= 256 and 2 * record["shared"] <= SHARED_MEMORY


def covered(case: Case, record: dict[str, Any]) -> str | None:
    """Why the model has no say on a kernel, or None."""
    sides = [int(side) for side in record["tile"].split("x")]
    if not record["matmul"] or case.operation == "int8_search":
        return "only bf16 products were measured"
    whole = sides[0] * sides[1] == TILE and record["warps"] == 8
    if not (whole or shared_by_two(record)):
        return f"a tile of {record['tile']} and {record['warps']} warps was never measured"
    if case.dtype == "fp32":
        return "float32 does not use the tensor cores"
    return None


def added_cycles(record: dict[str, Any]) -> tuple[int, int]:
    """Cycles that an epilogue adds to a tile: issue slots, and special functions.

    In a persistent kernel the epilogue stands anywhere in the loop, so all instructions count.
    """
    extra = record["epilogue"] - MAXIMUM
    if record["persistent"]:
        extra = record["instructions"] - MAXIMUM_ALL
    return 2 * extra, 16 * record["mufu"]


def in_products(case: Case, record: dict[str, Any]) -> dict[str, Any]:
    """What the model says about any kernel over all pairs: its time in products by cuBLAS."""
    row = {"kernel": record["kernel"], "case": f"{case.operation} {case.shape}"}
    why = covered(case, record)
    if why:
        return row | {"note": why}
    cycles = loop_cycles(case.dims) + max(added_cycles(record))
    spills = f"spills {record['spills']} bytes, which the model leaves out"
    products = cycles / cublas_cycles(case.dims)
    return row | {"products": products, "note": spills if record["spills"] else ""}


def prediction(case: Case, record: dict[str, Any]) -> dict[str, Any]:
    """What the model says about a kernel for all pairs, as a row."""
    row = {"K": case.k, "D": case.dims, "tile": record["tile"], "warps": record["warps"]}
    why = covered(case, record)
    if why:
        return row | {"note": why}
    loop, (issue, special) = loop_cycles(case.dims), added_cycles(record)
    share = {"": loop + max(issue, special), ", hidden": max(loop, issue, special)}
    figures = {f"x cuBLAS{how}": cublas_cycles(case.dims) / cycles for how, cycles in share.items()}
    figures |= {f"of floor{how}": floor_cycles(case.dims) / cycles for how, cycles in share.items()}
    kind, goal = GOALS.get((case.k, case.dims), ("", None))
    row |= {"loop": round(loop), "issue": issue, "MUFU": special, **figures}
    if goal is not None:
        met = [figures[kind] >= goal, figures[f"{kind}, hidden"] >= goal]
        row |= {"goal": f"{kind} {goal}", "met": "yes" if met[0] else "if hidden" * met[1] or "no"}
    return row | {"note": "; ".join(remarks(case, record))}


def of_turns(case: Case, record: dict[str, Any]) -> dict[str, Any]:
    """What the model says about the CUDA kernel, whose warpgroups take turns, as a row.

    While one warpgroup folds a tile of 16,384 cosines the other multiplies, and copies run ahead,
    so a pair of tiles takes the longest of three: the loop as it was measured with TMA and
    persistent blocks, the issue slots of both warpgroups, their special functions. Two things are
    assumed: that a turn is handed over without a gap, and that tiles of 128 x 128 multiply as fast
    as the one of 128 x 256 that was measured, though they move a quarter more through shared
    memory for a product (160 KB instead of 128 KB a stage).
    """
    loop = TMA_BASE + TMA_SLOPE * case.dims
    again = (-(-case.dims // STAGE) - 1) * record["loop"]
    issue, special = 2 * (record["instructions"] + again), 16 * record["mufu"]
    cycles = max(loop, issue, special)
    figures = {
        "x cuBLAS": cublas_cycles(case.dims) / cycles,
        "of floor": floor_cycles(case.dims) / cycles,
    }
    row = {"K": case.k, "D": case.dims, "loop": round(loop), "issue": issue, "MUFU": special}
    kind, goal = GOALS.get((case.k, case.dims), ("", None))
    if goal is not None:
        row |= {"goal": f"{kind} {goal}", "met": "yes" if figures[kind] >= goal else "no"}
    note = "D is outside what was fitted" if case.dims < 256 else ""
    return row | figures | {"note": note}


def remarks(case: Case, record: dict[str, Any]) -> list[str]:
    """What else to know about a prediction."""
    found = ["D is outside what was fitted"] * (case.dims < 256)
    found += ["persistent"] * record["persistent"]
    return found + ["two blocks a multiprocessor"] * shared_by_two(record)
