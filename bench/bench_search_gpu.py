"""Search of a million sets on a GPU: top ten of 1 to 1,024 queries, candidates, host memory.

    eager       all scores in torch, then topk (up to 16 queries)
    triton      divse.search(impl="triton"), the top-k inside the kernel
    excluded    the same with every second set excluded
    int8        divse_kernels.certified_search: codes are scanned, survivors scored exactly
    streamed    divse_kernels.search_blocks, the gallery in pinned host memory
    candidates  divse.score_candidates(impl="triton"), 1,000 sets for each query

Columns: ms (median), of floor (share of the larger of the compute floor and the bytes at the rate
of bench/roofline.py; host bytes at the measured rate of a copy to the device), GB/s of what had to
be read, peak MB beyond inputs, error of the scores against float64 of the whole gallery (for a
sample of the queries) and its gate. No speed without a green gate. `survivors` is how many sets a
query of the int8 scan had scored exactly, the mean.

    python bench/bench_search_gpu.py [--full] [--device cuda|cpu] [--json] [--out [DIR]]
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from harness import Verdict, gate, peak_bytes, time_interleaved
from report import Report, parser
from roofline import Roofline, measure
from scorers import ALPHA, eager, plain
from shapes import Shape
from torch import Tensor

import divse
import divse_kernels
from divse_kernels.certified import CODE_STEP, certified_search
from divse_kernels.search import search_blocks

TOPK, CANDIDATES, SAMPLE, EAGER_QUERIES = 10, 1000, 4, 16
JUDGED, HOST_BLOCK = 1 << 13, 1 << 14  # gallery sets that are judged, or copied, at a time
Call = Callable[[], Any]


@dataclass(frozen=True)
class Ceilings:
    """What the floors are made of: the device's, int8 products, and copies from the host."""

    roofline: Roofline
    int8: float
    host: float

    def floor_ms(self, shape: Shape, variant: str) -> float:
        """Least time of a variant."""
        moved, operations = shape.moved - 4 * shape.queries * shape.gallery, shape.operations
        if variant == "streamed":
            return max(1000 * moved / self.host, self.roofline.floor_ms(operations, 0, shape.dtype))
        if variant == "int8":  # a byte a dimension, a scale and a residual for each element
            elements = moved / shape.dtype.itemsize
            codes = elements * (1 + 8 / shape.dim)
            return 1000 * max(codes / self.roofline.read, operations / self.int8)
        if variant == "candidates":
            share = reranked(shape.gallery) / shape.gallery
            return self.roofline.floor_ms(
                operations * share, moved * share * shape.queries, shape.dtype
            )
        return self.roofline.floor_ms(operations, moved, shape.dtype)


def ceilings(report: Report, small: bool, seconds: float) -> Ceilings:
    """Measure them."""
    device = report.device
    roofline = measure(device, small=small, seconds=min(1.0, seconds))
    count = 1 << (16 if small else 30)
    host = torch.empty(count, dtype=torch.int8, pin_memory=device.type == "cuda")
    target = torch.empty(count, dtype=torch.int8, device=device)
    size = 128 if small else 8192
    codes = torch.randint(-127, 128, (size, size), dtype=torch.int8, device=device)
    calls = {"host": lambda: target.copy_(host, non_blocking=True)}
    if device.type == "cuda":
        calls["int8"] = lambda: torch._int_mm(codes, codes.t())
    ms = {n: statistics.median(t) for n, t in time_interleaved(calls, device, seconds=0.5).items()}
    int8 = 2 * size**3 / ms["int8"] * 1000 if "int8" in ms else roofline.best_matmul
    found = Ceilings(roofline, int8, count / ms["host"] * 1000)
    report.note(
        read_gb_s=roofline.read / 1e9,
        matmul_tflop_s=roofline.best_matmul / 1e12,
        int8_top_s=found.int8 / 1e12,
        host_gb_s=found.host / 1e9,
    )
    return found


def reranked(gallery: int) -> int:
    """How many candidates a query has."""
    return min(CANDIDATES, gallery // 4)


def best_of_all(queries: Tensor, gallery: Tensor, dtype: torch.dtype, step: int = 1) -> Tensor:
    """Scores (B, topk) of the best sets in a precision, block by block; every `step`-th set."""
    score = eager if dtype == torch.float64 else plain
    found = torch.full((len(queries), TOPK), -torch.inf, dtype=dtype, device=queries.device)
    for block in gallery[::step].split(JUDGED):
        scores = score(queries.to(dtype), block.to(queries.device, dtype))
        found = torch.cat([found, scores], dim=1).topk(TOPK).values
    return found


def eager_search(queries: Tensor, gallery: Tensor) -> tuple[Tensor, Tensor]:
    """What one writes in torch."""
    return eager(queries, gallery).topk(TOPK)


def blocks(host: Tensor) -> Iterator[tuple[int, Tensor, None]]:
    """A gallery in host memory as search_blocks takes it."""
    start = 0
    for block in host.split(HOST_BLOCK):
        yield start, block, None
        start += len(block)


def variants(queries: Tensor, gallery: Tensor, host: Tensor | None) -> dict[str, Call]:
    """The searches that can run here, each -> (scores, positions)."""
    options = {"alpha": ALPHA, "unit_norm": False, "impl": "triton"}
    found: dict[str, Call] = {}
    if len(queries) <= EAGER_QUERIES:
        found["eager"] = partial(eager_search, queries, gallery)
    found["triton"] = partial(divse.search, queries, gallery, TOPK, **options)
    excluded = torch.arange(len(gallery), device=queries.device) % 2 == 1
    found["excluded"] = partial(divse.search, queries, gallery, TOPK, excluded=excluded, **options)
    if gallery.shape[2] % CODE_STEP == 0:
        codes = divse_kernels.quantise(gallery)
        found["int8"] = partial(certified_search, queries, gallery, *codes, TOPK, alpha=ALPHA)
    if host is not None:
        found["streamed"] = lambda: search_blocks(queries, blocks(host), TOPK, alpha=ALPHA)
    return found


def judge(found: Any, queries: Tensor, gallery: Tensor, step: int, rounds: bool) -> Verdict:
    """Gate: scores of a sample of the queries against the best of the whole gallery in float64."""
    rows = torch.linspace(0, len(queries) - 1, min(SAMPLE, len(queries))).long()
    got = found[0][rows.to(found[0].device)]
    q = queries[rows.to(queries.device)]
    if bool((got.diff(dim=1) > 0).any()):
        return Verdict(float("nan"), 0.0)
    exact, single = (
        best_of_all(q, gallery, dtype, step) for dtype in (torch.float64, torch.float32)
    )
    rounding = torch.finfo(queries.dtype).eps / 2 if rounds else 0.0
    return gate(got, exact, single, rounding)


def run(shape: Shape, report: Report, limits: Ceilings, seconds: float, stream: bool) -> None:
    """Gate, memory and time of every search on one shape."""
    queries, gallery = shape.sets(report.device)
    host = gallery.cpu() if stream else None
    if host is not None and report.device.type == "cuda":
        host = host.pin_memory()
    verdicts, survivors, calls = {}, {}, variants(queries, gallery, host)
    for name, call in calls.items():
        step, result = 2 if name == "excluded" else 1, call()
        verdicts[name] = judge(result, queries, gallery, step, name == "eager")
        if len(result) == 3:
            survivors[name] = float(result[2].float().mean())
    add(report, shape, limits, calls, verdicts, seconds, survivors)
    calls, verdicts = candidates(queries, gallery)
    add(report, shape, limits, calls, verdicts, seconds)


def candidates(queries: Tensor, gallery: Tensor) -> tuple[dict[str, Call], dict[str, Verdict]]:
    """The re-ranking of random sets, and its gate."""
    generator = torch.Generator(queries.device).manual_seed(2)
    size = (len(queries), reranked(len(gallery)))
    chosen = torch.randint(len(gallery), size, device=queries.device, generator=generator)
    options = {"alpha": ALPHA, "unit_norm": False}
    call = partial(divse.score_candidates, queries, gallery, chosen, impl="triton", **options)
    q, few = queries[:SAMPLE], chosen[:SAMPLE, :64]
    exact, single = (
        torch.cat([score(a[None].to(t), gallery[b].to(t)) for a, b in zip(q, few, strict=True)])
        for score, t in ((eager, torch.float64), (plain, torch.float32))
    )
    return {"candidates": call}, {"candidates": gate(call()[:SAMPLE, :64], exact, single)}


def add(
    report: Report,
    shape: Shape,
    limits: Ceilings,
    calls: dict[str, Call],
    verdicts: dict[str, Verdict],
    seconds: float,
    survivors: dict[str, float] | None = None,
) -> None:
    """Time what is green and report all."""
    green = {name: calls[name] for name, verdict in verdicts.items() if verdict.green}
    memory = {name: peak_bytes(call, report.device) for name, call in green.items()}
    times = time_interleaved(green, report.device, seconds=seconds) if green else {}
    sizes = {"B": shape.queries, "N": shape.gallery, "K": shape.k, "D": shape.dim}
    for name, verdict in verdicts.items():
        row = {**sizes, "dtype": str(shape.dtype).removeprefix("torch."), "variant": name}
        if name in times:
            ms = statistics.median(times[name])
            row |= {"ms": ms, "of floor": limits.floor_ms(shape, name) / ms}
            row["peak MB"] = None if memory[name] is None else memory[name] / 1e6
        if name in (survivors or {}):
            row["survivors"] = survivors[name]
        report.add(verdict, **row)


def shapes(device: torch.device, tiny: bool, full: bool) -> list[Shape]:
    """Numbers of queries against one gallery."""
    if tiny or device.type != "cuda":
        return [Shape(2, 130, 2, 32, torch.float16)]
    batches = (1, 4, 16, 64, 256, 1024) if full else (1, 64, 1024)
    return [Shape(batch, 1 << 20, 4, 1024, torch.float16) for batch in batches]


def main() -> int:
    """Run the shapes."""
    arguments = parser(__doc__)
    arguments.add_argument("--full", action="store_true", help="more numbers of queries")
    arguments.add_argument("--tiny", action="store_true", help="a tiny shape: a rehearsal")
    args = arguments.parse_args()
    report = Report("bench_search_gpu", args)
    limits = ceilings(report, args.tiny, args.seconds)
    with torch.no_grad():
        for i, shape in enumerate(shapes(report.device, args.tiny, args.full)):
            run(shape, report, limits, args.seconds, stream=i == 0)
            if report.device.type == "cuda":
                torch.cuda.empty_cache()
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
