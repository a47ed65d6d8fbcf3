"""All-pairs and one-query Smooth-Chamfer scores: every implementation beside the bare matmul.

    eager      the formula in plain torch: matmul in the inputs' type, then logsumexp both ways
    compiled   torch.compile of the same
    reference  divse.score(impl="reference"): fp32 cosines whatever the input (CPU only)
    native     divse.score(impl="native"), the C++ kernel (CPU)
    triton     divse.score(impl="triton"), the fused kernel (GPU)
    matmul     the cosines alone, unscored: no scorer that multiplies can be much faster

Columns: ms (median), x eager and x matmul (how many times faster; medians of ratios within a
round), of floor (share of the larger of the compute and the memory floor of bench/roofline.py),
peak MB beyond inputs, error against float64 and its gate. Big outputs are judged on a sample of
64 queries x 2,048 gallery sets, and the whole of them must be finite.

    python bench/bench_score.py [--full] [--device cuda|cpu] [--json] [--out [DIR]]
"""

from __future__ import annotations

import itertools
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from harness import Verdict, gate, peak_bytes, ratio, time_interleaved
from report import Report, parser
from roofline import Roofline, measure
from torch import Tensor

import divse
from divse.similarity.reference import smooth_chamfer

ALPHA = 16.0
Scorer = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Shape:
    """B query sets against N gallery sets, K elements each, D dimensions."""

    queries: int
    gallery: int
    k: int
    dim: int
    dtype: torch.dtype

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.queries:,} x {self.gallery:,} K={self.k} D={self.dim} {dtype}"

    @property
    def operations(self) -> float:
        """Multiplications and additions of the cosines."""
        return 2.0 * self.queries * self.gallery * self.k**2 * self.dim

    @property
    def moved(self) -> float:
        """Fewest bytes: inputs read once, scores written once in fp32."""
        size = self.dtype.itemsize * self.k * self.dim
        return float((self.queries + self.gallery) * size + 4 * self.queries * self.gallery)

    def sets(self, device: torch.device, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Random unit vectors (B, K, D) and (N, K, D), rounded to the tested type."""
        generator = torch.Generator(device).manual_seed(seed)
        return tuple(
            torch.cat([self._block(n, device, generator) for n in _parts(count)])
            for count in (self.queries, self.gallery)
        )

    def _block(self, n: int, device: torch.device, generator: torch.Generator) -> Tensor:
        values = torch.randn(n, self.k, self.dim, device=device, generator=generator)
        return torch.nn.functional.normalize(values, dim=-1).to(self.dtype)


def shapes(device: torch.device, scale: str) -> Iterator[Shape]:
    """The shapes to run: "tiny" (tests), "default" or "full"."""
    gpu = device.type == "cuda"
    dtype = torch.bfloat16 if gpu else torch.float32
    if scale == "tiny":
        yield from (Shape(5, 33, 4, 64, dtype), Shape(1, 65, 4, 64, dtype))
    elif scale == "default" and gpu:
        yield from (Shape(1024, 65_536, 4, 1024, dtype), Shape(1024, 131_072, 4, 256, dtype))
        yield from (Shape(1, 1_048_576, 4, 1024, dtype), Shape(16, 1_048_576, 4, 1024, dtype))
        yield Shape(128, 32_768, 32, 128, dtype)
    elif scale == "default":
        yield from (Shape(128, 4096, 4, 256, dtype), Shape(1, 65_536, 4, 256, dtype))
    else:
        bytes_most = 8 << 30 if gpu else 1 << 28
        for k, dim, queries in itertools.product((1, 4, 8, 32), (128, 256, 1024), (1, 64, 1024)):
            by_bytes = bytes_most // (k * dim * dtype.itemsize)
            by_cosines = (1 << 32 if gpu else 1 << 26) // (queries * k * k)
            yield Shape(queries, min(by_bytes, by_cosines, 1 << 20), k, dim, dtype)


def eager(queries: Tensor, gallery: Tensor) -> Tensor:
    """Smooth-Chamfer (B, N) as one writes it in torch: materialises all cosines."""
    (b, k, d), (n, size, _) = queries.shape, gallery.shape
    cosines = queries.reshape(-1, d) @ gallery.reshape(-1, d).mT
    return smooth_chamfer(cosines.float().view(b, k, n, size).transpose(1, 2), alpha=ALPHA)


def matmul(queries: Tensor, gallery: Tensor) -> Tensor:
    """The bare product (B K, N L) in the inputs' type."""
    return queries.flatten(0, 1) @ gallery.flatten(0, 1).mT


def scorers(queries: Tensor, gallery: Tensor, compiled: bool) -> tuple[dict[str, Scorer], str]:
    """The variants that can serve these inputs, and a note on those that cannot."""
    found: dict[str, Scorer] = {"eager": eager}
    if compiled:
        torch.compiler.reset()  # each shape gets its own program, as a user of that shape would
        found["compiled"] = torch.compile(eager, dynamic=False)
    kernels = ("triton",) if queries.is_cuda else ("reference", "native")
    notes = []
    for impl in kernels:
        try:
            divse.explain(queries[:1], gallery[:1], impl=impl)
        except ValueError as error:
            notes.append(str(error))
            continue
        found[impl] = partial(divse.score, alpha=ALPHA, unit_norm=False, impl=impl)
    return found, "; ".join(notes)


def judge(call: Scorer, queries: Tensor, gallery: Tensor, rounds_cosines: bool) -> Verdict:
    """Gate one variant on a random sample of its output."""
    got = call(queries, gallery)
    if not bool(torch.isfinite(got).all()):
        return Verdict(float("nan"), 0.0)
    generator = torch.Generator().manual_seed(1)
    rows = torch.randperm(len(queries), generator=generator)[:64].to(queries.device)
    columns = torch.randperm(len(gallery), generator=generator)[:2048].to(queries.device)
    q, g = queries[rows], gallery[columns]
    rounding = torch.finfo(queries.dtype).eps / 2 if rounds_cosines else 0.0
    if queries.dtype == torch.float32:
        rounding = 0.0
    return gate(got[rows][:, columns], eager(q.double(), g.double()), _plain(q, g), rounding)


def _plain(q: Tensor, g: Tensor) -> Tensor:
    return divse.score(q, g, alpha=ALPHA, unit_norm=False, impl="reference")


def run(shape: Shape, report: Report, ceilings: Roofline, *, compiled: bool, seconds: float):
    """Gate, memory and time of every variant on one shape."""
    queries, gallery = shape.sets(report.device)
    calls, note = scorers(queries, gallery, compiled)
    if note:
        print(f"{shape}: {note}", file=sys.stderr)
    with torch.no_grad():
        verdicts, failed = {}, {}
        for name, call in calls.items():
            try:
                verdicts[name] = judge(call, queries, gallery, name in ("eager", "compiled"))
            except torch.OutOfMemoryError:
                failed[name] = "out of memory"
                torch.cuda.empty_cache()
        green = {n: partial(calls[n], queries, gallery) for n, v in verdicts.items() if v.green}
        green["matmul"] = partial(matmul, queries, gallery)
        memory = {name: peak_bytes(call, report.device) for name, call in green.items()}
        times = time_interleaved(green, report.device, seconds=seconds)
    for name in [*calls, "matmul"]:
        figures = {}
        if name in times:
            ms = statistics.median(times[name])
            floor = ceilings.floor_ms(shape.operations, shape.moved, shape.dtype)
            figures = {
                "ms": ms,
                "x eager": ratio(times, "eager", name) if "eager" in times else None,
                "x matmul": ratio(times, "matmul", name),
                "of floor": floor / ms,
                "peak MB": None if memory[name] is None else memory[name] / 1e6,
            }
        row = {"shape": str(shape), "variant": name} | figures
        if name in failed:
            row["gate"] = failed[name]
        report.add(verdicts.get(name), **row)


def _parts(count: int, size: int = 1 << 16) -> Iterator[int]:
    yield from (min(size, count - start) for start in range(0, count, size))


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--full", action="store_true", help="the whole grid of K, D and queries")
    arguments.add_argument("--tiny", action="store_true", help="tiny shapes: a rehearsal")
    arguments.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    args = arguments.parse_args()
    report = Report("bench_score", args)
    ceilings = measure(report.device, small=args.tiny, seconds=min(1.0, args.seconds))
    for shape in shapes(report.device, "tiny" if args.tiny else "full" if args.full else "default"):
        run(shape, report, ceilings, compiled=not args.no_compile, seconds=args.seconds)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
