"""Exact search on a CPU: how close each scan comes to reading its gallery once, against its rivals.

One query or 16 for the 10 best of N sets. Variants, all exact for the precision in their name:

    native fp32, fp16, bf16   divse_native.search, fused scan and top-k
    int8 certified            divse_native.certified_search: int8 codes, then exact fp16 scores
    torch query-major         product of queries x gallery in blocks, scores, top-k
    torch gallery-major       the same with the product transposed; compiled: torch.compile of both
    numpy                     the same in numpy, both orders
    product                   the bare torch product alone, unscored, both orders
    maxsim-cpu, lik           the PyPI packages maxsim-cpu and late-interaction-kernels (MaxSim
                              only), where they are installed
    read fp32, fp16, int8     a sum over the same bytes: the floor of a scan that reads them once

Columns: ms (median), x read (times its own floor; medians of ratios within a round), of read (its
inverse), x product, x rival (how many times faster than the fastest of torch, torch.compile and
numpy), survivors, error against float64 and its gate, which also finds a set that was missed.

    python bench/bench_cpu.py [--only TEXT] [--sizes N ...] [--seconds S] [--tiny] [--out [DIR]]
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import EPS32, Verdict, ratio, time_interleaved
from report import Report, parser, results_folder
from torch import Tensor

import divse_native
from divse.similarity import reference

TOPK, BLOCK = 10, 1 << 15
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
Found = tuple[Tensor, Tensor]  # scores (B, topk) and positions


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


def unit_sets(count: int, k: int, dim: int, seed: int, dtype: torch.dtype) -> Tensor:
    """Random unit vectors (count, K, D), made block by block."""
    generator = torch.Generator().manual_seed(seed)
    out = torch.empty(count, k, dim, dtype=dtype)
    for start in range(0, count, BLOCK):
        block = torch.randn(min(BLOCK, count - start), k, dim, generator=generator)
        out[start : start + BLOCK] = torch.nn.functional.normalize(block, dim=-1)
    return out


class Data:
    """The gallery of one shape in every precision, and 16 queries."""

    def __init__(self, sets: int, k: int, dim: int) -> None:
        half = unit_sets(sets, k, dim, 0, torch.float16)
        # Every precision holds the same sets, so that bf16 alone has values of its own.
        self.values = {"fp16": half, "fp32": half.float(), "bf16": half.to(torch.bfloat16)}
        self.codes = divse_native.quantise(half.numpy())
        self.queries = unit_sets(16, k, dim, 1, torch.float32)

    def stored(self, name: str) -> Tensor:
        """The array that a variant of this precision scans."""
        return torch.from_numpy(self.codes[0]) if name == "int8" else self.values[name]


def reduce(cosines: Tensor, similarity: str) -> Tensor:
    """Scores of cosines (..., K, L)."""
    if similarity == "maxsim":
        return cosines.amax(-1).sum(-1)
    return reference.smooth_chamfer(cosines, alpha=16.0)


def query_major(queries: Tensor, block: Tensor) -> Tensor:
    """Cosines (B, n, K, L) from a product (B K, n L)."""
    (b, k, d), (n, size, _) = queries.shape, block.shape
    return (queries.view(-1, d) @ block.view(-1, d).T).view(b, k, n, size).transpose(1, 2)


def gallery_major(queries: Tensor, block: Tensor) -> Tensor:
    """Cosines (B, n, K, L) from a product (n L, B K)."""
    (b, k, d), (n, size, _) = queries.shape, block.shape
    return (block.view(-1, d) @ queries.view(-1, d).T).view(n, size, b, k).permute(2, 0, 3, 1)


ORDERS = {"query-major": query_major, "gallery-major": gallery_major}


def torch_search(order: str, similarity: str, compiled: bool = False) -> Callable[..., Found]:
    """The 10 best by plain torch, in blocks that bound its memory."""

    def score(queries: Tensor, block: Tensor) -> Tensor:
        return reduce(ORDERS[order](queries, block), similarity)

    scorer = torch.compile(score) if compiled else score

    def search(queries: Tensor, gallery: Tensor) -> Found:
        scores = torch.cat([scorer(queries, block) for block in gallery.split(BLOCK)], 1)
        return tuple(scores.topk(TOPK))

    return search


def numpy_search(order: str, similarity: str) -> Callable[..., Found]:
    """The 10 best by plain numpy: one product a block, exponentials, logarithms."""

    def score(q: np.ndarray, g: np.ndarray) -> np.ndarray:
        (b, k, d), (n, size, _) = q.shape, g.shape
        if order == "query-major":
            c = (q.reshape(-1, d) @ g.reshape(-1, d).T).reshape(b, k, n, size).swapaxes(1, 2)
        else:
            c = (g.reshape(-1, d) @ q.reshape(-1, d).T).reshape(n, size, b, k).transpose(2, 0, 3, 1)
        if similarity == "maxsim":
            return c.max(-1).sum(-1)
        e = np.exp(16 * c)
        return (np.log(e.sum(-1)).mean(-1) + np.log(e.sum(-2)).mean(-1)) / 32

    def search(queries: np.ndarray, gallery: np.ndarray) -> Found:
        blocks = range(0, len(gallery), BLOCK)
        scores = np.concatenate([score(queries, gallery[i : i + BLOCK]) for i in blocks], 1)
        best = np.argpartition(-scores, TOPK - 1)[:, :TOPK]
        best = np.take_along_axis(best, np.argsort(-np.take_along_axis(scores, best, 1)), 1)
        return torch.from_numpy(np.take_along_axis(scores, best, 1)), torch.from_numpy(best)

    return search


def bare_product(order: str) -> Callable[..., Any]:
    """The product alone, block after block."""

    def run(queries: Tensor, gallery: Tensor) -> None:
        for block in gallery.split(BLOCK):
            ORDERS[order](queries, block)

    return run


def native_search(data: Data, queries: Tensor, name: str, similarity: str) -> Callable[[], Found]:
    """A call of divse_native in the precision of that name."""
    options: dict[str, Any] = {"similarity": similarity, "threads": torch.get_num_threads()}
    if name == "int8":
        rest = (data.values["fp16"].numpy(), *data.codes, TOPK)
        call = divse_native.certified_search
    else:
        stored = data.values[name]
        if name == "bf16":
            stored, options["gallery_type"] = stored.view(torch.uint16), "bfloat16"
        rest, call = (stored.numpy(), TOPK), divse_native.search

    def search() -> Found:
        return tuple(torch.from_numpy(a) for a in call(queries.numpy(), *rest, **options))

    return search


def peers(data: Data, queries: Tensor) -> dict[str, Callable[[], Found]]:
    """Packages that score MaxSim on a CPU, those of them that are installed; fp32."""
    found: dict[str, Callable[[], Found]] = {}
    gallery = data.values["fp32"]

    def best(scores: Any) -> Found:
        return tuple(torch.as_tensor(scores).reshape(len(queries), -1).topk(TOPK))

    try:
        import maxsim_cpu

        arrays, sets = queries.numpy(), gallery.numpy()
        found["maxsim-cpu"] = lambda: best(
            np.stack([maxsim_cpu.maxsim_scores(query, sets) for query in arrays])
        )
    except ImportError as error:
        print(f"maxsim-cpu left out: {error}", file=sys.stderr)
    try:
        from late_interaction_kernels.reference import maxsim_reference  # its path on a CPU

        found["lik"] = lambda: best(
            torch.cat([maxsim_reference(queries, block) for block in gallery.split(BLOCK // 8)], 1)
        )
    except ImportError as error:
        print(f"late-interaction-kernels left out: {error}", file=sys.stderr)
    return found


def variants(cell: Cell, data: Data, compiled: bool) -> dict[str, Callable[[], Any]]:
    """Every call of a cell by name; the floors last."""
    queries, wide = data.queries[: cell.queries], data.values["fp32"]
    calls: dict[str, Callable[[], Any]] = {}
    for name in (*DTYPES, "int8"):
        label = "int8 certified" if name == "int8" else f"native {name}"
        calls[label] = native_search(data, queries, name, cell.similarity)
    for order in ORDERS:
        plain = torch_search(order, cell.similarity)
        calls[f"torch {order}"] = lambda run=plain: run(queries, wide)
        arrays = (queries.numpy(), wide.numpy())
        numeric = numpy_search(order, cell.similarity)
        calls[f"numpy {order}"] = lambda run=numeric, a=arrays: run(*a)
        if compiled:
            fused = torch_search(order, cell.similarity, compiled=True)
            calls[f"compiled {order}"] = lambda run=fused: run(queries, wide)
        product = bare_product(order)
        calls[f"product {order}"] = lambda run=product: run(queries, wide)
    if cell.similarity == "maxsim":
        calls |= peers(data, queries)
    for name in ("fp32", "fp16", "int8"):
        words = data.stored(name).view(torch.uint8).view(-1).view(torch.int64)
        calls[f"read {name}"] = words.sum
    return calls


def exact_scores(query: Tensor, gallery: Tensor, similarity: str) -> Tensor:
    """All scores (N,) of one query in float64."""
    wide, parts = query[None].double(), gallery.split(BLOCK // 4)
    return torch.cat([reduce(query_major(wide, p.double()), similarity)[0] for p in parts])


def judge(found: Any, exact: Tensor) -> Verdict:
    """Gate the best of the first query: their scores, and that none is missing."""
    scores, ids = found[0][0].double(), found[1][0]
    error = (scores - exact[ids]).abs().max()
    missed = (exact.topk(TOPK).values - exact[ids].sort(descending=True).values).abs().max()
    worst = torch.maximum(error, missed)
    return Verdict(float(worst), 64 * EPS32 * float(exact.abs().max()))


def precision(name: str) -> str:
    """What a variant reads."""
    return next((p for p in ("fp16", "bf16", "int8") if p in name), "fp32")


def run(cell: Cell, data: Data, report: Report, *, compiled: bool, seconds: float, only: str):
    """Gate and time every variant of one cell."""
    torch.compiler.reset()
    calls = variants(cell, data, compiled)
    exact: dict[str, Tensor] = {}
    verdicts, survivors = {}, None
    for name, call in list(calls.items()):
        if name.startswith(("read", "product")):
            continue
        if only not in name:
            del calls[name]
            continue
        kind = "bf16" if name == "native bf16" else "fp32"
        if kind not in exact:
            exact[kind] = exact_scores(data.queries[0], data.values[kind], cell.similarity)
        found = call()
        verdicts[name] = judge(found, exact[kind])
        if name == "int8 certified":
            survivors = int(found[3].max())
        if not verdicts[name].green:
            del calls[name]
    times = time_interleaved(calls, report.device, seconds=seconds)
    middle = {name: statistics.median(samples) for name, samples in times.items()}

    def fastest(kind: str | tuple[str, ...]) -> str | None:
        return min((n for n in middle if n.startswith(kind)), key=middle.get, default=None)

    product, rival = fastest("product"), fastest(("torch", "numpy", "compiled"))
    for name in [*verdicts, *(n for n in calls if n not in verdicts)]:
        row: dict[str, Any] = {"cell": str(cell), "N": cell.sets, "variant": name}
        if name in times:
            kind = precision(name)
            floor = f"read {'fp16' if kind == 'bf16' else kind}"
            over = ratio(times, name, floor)
            row |= {"ms": middle[name], "x read": over, "of read": 1 / over}
            row["x product"] = ratio(times, name, product)
            row["x rival"] = ratio(times, rival, name) if rival else None
        if name == "int8 certified":
            row["survivors"] = survivors
        report.add(verdicts.get(name), **row)


def plot(rows: list[dict[str, Any]], folder: Path) -> None:
    """bench_cpu.svg: time against N and share of the read floor against N, one query, K=4."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    shown = [row for row in rows if "smooth_chamfer B=1 " in row["cell"] and "K=4 " in row["cell"]]
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
        axis.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(folder / "bench_cpu.svg")
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
            groups.append([Cell(b, n, k, dim, s) for s in both for b in (1, 16)])
    return groups


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--tiny", action="store_true", help="tiny shapes: a rehearsal")
    arguments.add_argument("--only", default="", help="variants whose name contains this")
    arguments.add_argument("--sizes", type=int, nargs="+", default=[], help="these N only")
    arguments.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    args = arguments.parse_args()
    args.device, compiled = "cpu", not args.no_compile
    report = Report("bench_cpu", args)
    for group in cells(args.tiny, args.sizes):
        data = Data(group[0].sets, group[0].k, group[0].dim)
        for cell in group:
            run(cell, data, report, compiled=compiled, seconds=args.seconds, only=args.only)
        del data
    status = report.finish()
    if args.out is not None:
        plot(report.rows, args.out if str(args.out) != "." else results_folder(report.device))
    return status


if __name__ == "__main__":
    sys.exit(main())
