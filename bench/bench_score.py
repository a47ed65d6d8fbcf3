"""All-pairs scores: every implementation beside the bare matmul, eager torch and two peers.

The variants are those of bench/scorers.py. Columns: ms (median), x eager and x matmul (how many
times faster; medians of ratios within a round), of floor (share of the larger of the compute and
the memory floor of bench/roofline.py, measured in the same run), peak MB beyond inputs, error
against float64 and its gate. Big outputs are judged on a sample of up to 64 queries x 2,048
gallery sets, and the whole of them must be finite.

    python bench/bench_score.py [--full [--part I/N]] [--device cuda|cpu] [--json] [--out [DIR]]
    python bench/bench_score.py --impl cuda      the CUDA kernel for Hopper, where it serves
"""

from __future__ import annotations

import statistics
import sys
from functools import partial

import torch
from harness import Verdict, gate, peak_bytes, ratio, time_interleaved
from report import Report, parser
from roofline import Roofline, measure
from scorers import ROUNDING, Scorer, eager, matmul, plain, scorers
from shapes import Shape, part, shapes
from torch import Tensor

SAMPLE, SAMPLED_COSINES = (64, 2048), 1 << 27  # queries and gallery sets that are judged, at most


def judge(name: str, call: Scorer, shape: Shape, queries: Tensor, gallery: Tensor) -> Verdict:
    """Gate one variant on a random sample of its output."""
    got = call(queries, gallery)
    if not bool(torch.isfinite(got).all()):
        return Verdict(float("nan"), 0.0)
    rows, columns = sample(shape, queries.device)
    q, g = queries[rows], gallery[columns]
    rounding = 0.0
    if name in ROUNDING and queries.dtype != torch.float32:
        rounding = torch.finfo(queries.dtype).eps / 2  # of a cosine, and MaxSim adds up K of them
        rounding *= shape.k if shape.similarity == "maxsim" else 1
    exact = eager(q.double(), g.double(), shape.similarity)
    return gate(got[rows][:, columns].float(), exact, plain(q, g, shape.similarity), rounding)


def sample(shape: Shape, device: torch.device) -> tuple[Tensor, Tensor]:
    """Positions of the queries and of the gallery sets that are judged: fp64 needs memory."""
    rows = min(SAMPLE[0], shape.queries)
    of_a_row = rows * shape.cosines // (shape.queries * shape.gallery)
    counts = rows, max(1, min(SAMPLE[1], SAMPLED_COSINES // of_a_row))
    generator = torch.Generator().manual_seed(1)
    return tuple(
        torch.randperm(n, generator=generator)[:most].to(device)
        for n, most in zip((shape.queries, shape.gallery), counts, strict=True)
    )


def gates(
    calls: dict[str, Scorer], shape: Shape, queries: Tensor, gallery: Tensor
) -> tuple[dict[str, Verdict], dict[str, str]]:
    """Verdicts of the variants, and why the others have none."""
    verdicts, failed = {}, {}
    for name, call in calls.items():
        try:
            verdicts[name] = judge(name, call, shape, queries, gallery)
        except torch.OutOfMemoryError:
            failed[name] = "out of memory"
            torch.cuda.empty_cache()
        except Exception as error:
            if name not in ("flash-maxsim", "late-interaction-kernels", "compiled"):
                raise  # what is not ours may fail here, and the cell says so
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0][:80]
    return verdicts, failed


def run(
    shape: Shape,
    report: Report,
    ceilings: Roofline,
    *,
    impls: list[str],
    compiled: bool,
    seconds: float,
):
    """Gate, memory and time of every variant on one shape, if one of `impls` serves it."""
    queries, gallery = shape.sets(report.device)
    calls, note = scorers(queries, gallery, compiled, shape.similarity, impls)
    if note:
        print(f"{shape}: {note}", file=sys.stderr)
    if not set(impls) & set(calls):
        return
    with torch.no_grad():
        verdicts, failed = gates(calls, shape, queries, gallery)
        green = {n: partial(calls[n], queries, gallery) for n, v in verdicts.items() if v.green}
        green["matmul"] = partial(matmul, queries, gallery)
        memory = {name: peak_bytes(call, report.device) for name, call in green.items()}
        times = time_interleaved(green, report.device, seconds=seconds)
    floor = ceilings.floor_ms(shape.operations, shape.moved, shape.dtype)
    for name in [*calls, "matmul"]:
        row = cell(shape, name) | speed(name, times, memory, floor)
        if name in failed:
            row["gate"] = failed[name]
        report.add(verdicts.get(name), **row)


def cell(shape: Shape, variant: str) -> dict[str, object]:
    """What identifies a row."""
    dtype = str(shape.dtype).removeprefix("torch.")
    sizes = {"B": shape.queries, "N": shape.gallery, "K": shape.k, "L": shape.size or shape.k}
    head = {"similarity": shape.similarity, **sizes, "D": shape.dim, "dtype": dtype}
    return head | {"variant": variant}


def speed(
    name: str, times: dict[str, list[float]], memory: dict[str, int | None], floor: float
) -> dict[str, float | None]:
    """The figures of a variant that was timed; none of one that was not."""
    if name not in times:
        return {}
    ms = statistics.median(times[name])
    return {
        "ms": ms,
        "x eager": ratio(times, "eager", name) if "eager" in times else None,
        "x matmul": ratio(times, "matmul", name),
        "of floor": floor / ms,
        "peak MB": None if memory[name] is None else memory[name] / 1e6,
    }


def main() -> int:
    """Run the shapes."""
    arguments = parser(__doc__)
    arguments.add_argument("--full", action="store_true", help="the whole grid of K, D and queries")
    arguments.add_argument("--part", default="1/1", metavar="I/N", help="every N-th shape alone")
    arguments.add_argument("--tiny", action="store_true", help="tiny shapes: a rehearsal")
    arguments.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    arguments.add_argument(
        "--impl", nargs="+", metavar="NAME", help="of divse (triton; on a CPU reference native)"
    )
    args = arguments.parse_args()
    report = Report("bench_score", args)
    on_gpu = report.device.type == "cuda"
    impls = args.impl or (["triton"] if on_gpu else ["reference", "native"])
    ceilings = measure(report.device, small=args.tiny, seconds=min(1.0, args.seconds))
    report.note(read_gb_s=ceilings.read / 1e9, matmul_tflop_s=ceilings.best_matmul / 1e12)
    scale = "tiny" if args.tiny else "full" if args.full else "chosen"
    for shape in part(shapes(report.device, scale), args.part):
        times = {"compiled": not args.no_compile, "seconds": args.seconds}
        run(shape, report, ceilings, impls=impls, **times)
        if on_gpu:
            torch.cuda.empty_cache()
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
