"""Exact search on a CPU: how close each scan comes to reading its gallery once, against its rivals.

One query or 16 for the 10 best of N sets. Variants, all exact for the precision in their name:

    native fp32, fp16, bf16   divse_native.search, fused scan and top-k
    int8 certified            divse_native.certified_search: int8 codes, then exact fp16 scores
    torch query-major         product of queries x gallery in blocks, scores, top-k
    torch gallery-major       the same with the product transposed
    compiled                  torch.compile of the faster of the two
    numpy                     the same in numpy, both orders
    product                   the bare torch product alone, unscored, both orders
    maxsim-cpu, lik           the PyPI packages maxsim-cpu and late-interaction-kernels (MaxSim
                              only), where they are installed
    read fp32, fp16, int8     a sum over the same bytes: the floor of a scan that reads them once

Before every sample other bytes fill the caches, so that each call reads its gallery from memory,
and the machine rests, on cores that are kept awake. --cached has the same call in place of other
bytes, which leaves some of its gallery in the caches.

Columns: ms (median), x read (times its own floor; medians of ratios within a round), of read (its
inverse), x product, x rival (how many times faster than the fastest of torch, torch.compile and
numpy), survivors, error against float64 and its gate, which also finds a set that was missed.

The files are written cell by cell; --resume keeps those cells that this commit has measured.

    python bench/bench_cpu.py [--only TEXT] [--sizes N ...] [--seconds S] [--tiny] [--no-compile]
                              [--cached] [--out [DIR]] [--resume]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cpu_searches import (
    BLOCK,
    ORDERS,
    TOPK,
    Data,
    compiled_search,
    exact_searches,
    floors,
    query_major,
    reduce,
)
from harness import EPS32, Cores, Verdict, ratio
from report import Report, parser, results_folder
from torch import Tensor

import divse_native

Calls = dict[str, Callable[[], Any]]
LONG_UP_TO = 10_000  # sets of K=32 for 16 queries: bound by arithmetic, which only grows with N
REST_SECONDS = 0.03  # OpenMP's and OpenBLAS' threads spin for less after their work
SAME_RUN = ("commit", "device", "processor", "isa", "threads", "torch", "cached")
OTHER_BYTES = 1 << 27  # more than a few cores have of caches; each of many would need as much


@dataclass(frozen=True)
class Cell:
    """B queries against N sets, K elements on both sides, D dimensions."""

    queries: int
    sets: int
    k: int
    dim: int
    similarity: str = "smooth_chamfer"

    def __str__(self) -> str:
        return f"{self.similarity} B={self.queries} N={self.sets:,} K={self.k} D={self.dim}"


def exact_scores(query: Tensor, gallery: Tensor, similarity: str) -> Tensor:
    """All scores (N,) of one query in float64."""
    wide, parts = query[None].double(), gallery.split(BLOCK // 4)
    return torch.cat([reduce(query_major(wide, p.double()), similarity)[0] for p in parts])


def judge(found: Any, exact: Tensor) -> Verdict:
    """Gate the best of the first query: their scores, and that none is missing."""
    scores, ids = (torch.as_tensor(part)[0] for part in found[:2])
    scores = scores.double()
    error = (scores - exact[ids]).abs().max()
    missed = (exact.topk(TOPK).values - exact[ids].sort(descending=True).values).abs().max()
    worst = torch.maximum(error, missed)
    return Verdict(float(worst), 64 * EPS32 * float(exact.abs().max()))


def precision(name: str) -> str:
    """What a variant reads."""
    return next((p for p in ("fp16", "bf16", "int8") if p in name), "fp32")


class Gate:
    """Judges the searches of one cell; what is red is never timed."""

    def __init__(self, cell: Cell, data: Data) -> None:
        self.cell, self.data = cell, data
        self.exact: dict[str, Tensor] = {}
        self.verdicts: dict[str, Verdict] = {}
        self.survivors: int | None = None

    def green(self, calls: Calls) -> Calls:
        """Those of ``calls`` whose results are right; each is called once."""
        for name, call in calls.items():
            found = call()
            self.verdicts[name] = judge(found, self._exact(name))
            if name == "int8 certified":
                self.survivors = int(found[3].max())
        return {name: call for name, call in calls.items() if self.verdicts[name].green}

    def _exact(self, name: str) -> Tensor:
        kind = "bf16" if name == "native bf16" else "fp32"
        if kind not in self.exact:
            query, gallery = self.data.queries[0], self.data.values[kind]
            self.exact[kind] = exact_scores(query, gallery, self.cell.similarity)
        return self.exact[kind]


def milliseconds(call: Callable[[], Any], cores: Cores) -> float:
    """Of one call on a machine at rest, where no other library's threads still spin."""
    cores.rest(REST_SECONDS)
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


def time_rounds(calls: Calls, seconds: float, cores: Cores, cached: bool) -> dict[str, list[float]]:
    """Milliseconds of each call, one a round, for about ``seconds``; 3 rounds, 2 of slow calls."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    fill = torch.ones(OTHER_BYTES // 8, dtype=torch.int64).sum  # of zeros there would be one page
    order = random.Random(0)  # none always comes after the same
    for round_number in range(1, 101):
        start = time.perf_counter()
        for name in order.sample(list(calls), len(calls)):
            cores.rest(REST_SECONDS)
            (calls[name] if cached else fill)()
            times[name].append(milliseconds(calls[name], cores))
        one = time.perf_counter() - start
        if round_number >= (2 if one > 10 else 3) and round_number * one >= seconds:
            break
    return times


def measured(
    cell: Cell, data: Data, options: argparse.Namespace, gate: Gate, cores: Cores
) -> dict[str, Any]:
    """Times of every variant of one cell that is right and whose name was asked for."""
    queries = data.queries[: cell.queries]
    searches = exact_searches(data, queries, cell.similarity)
    calls = gate.green({n: call for n, call in searches.items() if options.only in n})
    if not options.no_compile and options.only in "compiled":
        faster = min(ORDERS, key=lambda order: milliseconds(searches[f"torch {order}"], cores))
        torch.compiler.reset()
        compiled = compiled_search(data, queries, cell.similarity, faster)
        calls |= gate.green(compiled)
    rest = floors(data, queries)
    for call in rest.values():  # first touches stay outside
        call()
    return time_rounds(calls | rest, options.seconds, cores, options.cached)


def rows(cell: Cell, gate: Gate, times: Mapping[str, list[float]]) -> list[dict[str, Any]]:
    """The rows of one cell."""
    middle = {name: statistics.median(samples) for name, samples in times.items()}

    def fastest(kind: str | tuple[str, ...]) -> str | None:
        return min((n for n in middle if n.startswith(kind)), key=middle.get, default=None)

    product, rival = fastest("product"), fastest(("torch", "numpy", "compiled"))
    result = []
    for name in [*gate.verdicts, *(n for n in times if n not in gate.verdicts)]:
        row: dict[str, Any] = {"cell": str(cell), "N": cell.sets, "variant": name}
        if name in times:
            kind = precision(name)
            over = ratio(times, name, f"read {'fp16' if kind == 'bf16' else kind}")
            row |= {"ms": middle[name], "x read": over, "of read": 1 / over}
            row["x product"] = ratio(times, name, product)
            row["x rival"] = ratio(times, rival, name) if rival else None
        if name == "int8 certified":
            row["survivors"] = gate.survivors
        result.append(row)
    return result


def plot(shown: list[dict[str, Any]], path: Path) -> None:
    """Time against N and share of the read floor against N, one query, K=4."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    shown = [row for row in shown if "smooth_chamfer B=1 " in row["cell"] and "K=4 " in row["cell"]]
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4))
    for name in dict.fromkeys(row["variant"] for row in shown if row.get("ms")):
        points = sorted((r["N"], r["ms"], r["of read"]) for r in shown if r["variant"] == name)
        sizes, times, shares = zip(*points, strict=True)
        style = ":" if name.startswith("read") else "-"
        axes[0].loglog(sizes, times, style, marker=".", label=name)
        if name.startswith(("native", "int8")):
            axes[1].semilogx(sizes, shares, marker=".", label=name)
    axes[0].set(xlabel="sets N (K=4, D=256)", ylabel="ms for one query, best 10")
    axes[1].set(xlabel="sets N", ylabel="read floor / time", ylim=(0, 1.05))
    for axis in axes:
        if shown:
            axis.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def cells(tiny: bool, sizes: list[int]) -> list[list[Cell]]:
    """Cells to run, those of one gallery together."""
    if tiny:
        small = (Cell(1, 90, 4, 32), Cell(16, 90, 4, 32), Cell(1, 90, 4, 32, "maxsim"))
        return [list(small)]
    groups = []
    for k, dim, counts in ((4, 256, (10_000, 100_000, 1_000_000)), (32, 128, (10_000, 100_000))):
        for n in counts:
            if sizes and n not in sizes:
                continue
            both = ("smooth_chamfer", "maxsim") if k == 32 else ("smooth_chamfer",)
            many = (1,) if k == 32 and n > LONG_UP_TO else (1, 16)
            groups.append([Cell(b, n, k, dim, s) for s in both for b in many])
    return groups


def keep_measured(report: Report, path: Path) -> set[str]:
    """Take over the finished cells of an earlier run of this commit; return their names."""
    try:
        earlier = json.loads(path.read_text())
    except FileNotFoundError:
        return set()
    was, here = earlier["environment"], report.environment
    if any(was.get(key) != here[key] for key in SAME_RUN):
        print("--resume: another commit, machine or torch; measuring everything", file=sys.stderr)
        return set()
    # The last row of every cell.
    done = {row["cell"] for row in earlier["rows"] if row["variant"] == "read int8"}
    report.rows = [row for row in earlier["rows"] if row["cell"] in done]
    report.red = [str(row) for row in report.rows if row.get("gate") == "RED"]
    return done


def main() -> int:
    arguments = parser(__doc__)
    arguments.set_defaults(seconds=6.0)
    arguments.add_argument("--tiny", action="store_true", help="tiny shapes: a rehearsal")
    arguments.add_argument("--only", default="", help="variants whose name contains this")
    arguments.add_argument("--sizes", type=int, nargs="+", default=[], help="these N only")
    arguments.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    arguments.add_argument("--cached", action="store_true", help="galleries may lie in caches")
    arguments.add_argument("--resume", action="store_true", help="keep what this commit measured")
    args = arguments.parse_args()
    args.device = "cpu"
    name = "bench_cpu_cached" if args.cached else "bench_cpu"
    report = Report(name, args)
    isa = divse_native.instruction_sets()[0]  # a hypervisor may hide some of a CPU's
    report.note(isa=isa, cached=args.cached)
    folder = args.out if args.out is None or str(args.out) != "." else results_folder(report.device)
    done = keep_measured(report, folder / f"{name}.json") if args.resume and folder else set()
    with Cores() as cores:
        report.note(cores="kept awake" if cores.awake else "may sleep")
        for group in cells(args.tiny, args.sizes):
            missing = [cell for cell in group if str(cell) not in done]
            data = Data(group[0].sets, group[0].k, group[0].dim) if missing else None
            for cell in missing:
                gate = Gate(cell, data)
                times = measured(cell, data, args, gate, cores)
                for row in rows(cell, gate, times):
                    report.add(gate.verdicts.get(row["variant"]), **row)
                if folder:
                    plot(report.rows, folder / f"{name}.svg")
            del data
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
