"""Forward and backward of the hardest-negative triplet loss on Smooth-Chamfer, beside one matmul.

    eager      scores by the formula in plain torch, in the inputs' type
    compiled   torch.compile of the scores
    native     divse.score(impl="native") (CPU)
    triton     divse.score(impl="triton") (GPU)
    matmul     one product of the batch's elements: a dense loss needs three, forward and backward

B pictures against B captions, K elements each. The gate judges the pictures' gradient against
float64, for the negatives that float64 mines: two that score alike within rounding are equally
hard, and choosing the other one is no error. Columns as in bench_score.py.

    python bench/bench_training.py [--full] [--device cuda|cpu] [--json] [--out [DIR]]
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from functools import partial

import torch
from harness import Verdict, gate, peak_bytes, ratio, time_interleaved
from report import Report, parser
from scorers import Scorer, matmul, scorers
from shapes import Shape
from torch import Tensor

MARGIN = 0.2


def triplet(scores: Tensor) -> Tensor:
    """Hinge against the hardest negative both ways; scores (B, B), positives on the diagonal."""
    own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    negatives, positives = scores.masked_fill(own, float("-inf")), scores.diagonal()
    both = (negatives.amax(1) - positives, negatives.amax(0) - positives)
    return sum(((MARGIN + gap).clamp(min=0).mean() for gap in both), scores.new_zeros(()))


def gradient(score: Scorer, images: Tensor, texts: Tensor) -> Tensor:
    """One training step's share of the loss: forward, backward; returns the pictures' gradient."""
    images, texts = images.detach().requires_grad_(), texts.detach().requires_grad_()
    found, _ = torch.autograd.grad(triplet(score(images, texts)), (images, texts))
    return found


def pull_back(score: Scorer, images: Tensor, texts: Tensor, grad_scores: Tensor) -> Tensor:
    """The pictures' gradient (B, K, D) for a given gradient of the scores (B, B)."""
    images = images.detach().requires_grad_()
    scores = score(images, texts.detach())
    return torch.autograd.grad(scores, images, grad_scores.to(scores.dtype))[0]


def judge(calls: dict[str, Scorer], images: Tensor, texts: Tensor) -> dict[str, Verdict]:
    """Gate every variant's gradient."""
    eager, wide = calls["eager"], (images.double(), texts.double())
    with torch.no_grad():
        scores = eager(*wide)
    grad_scores = torch.autograd.grad(triplet(scores.requires_grad_()), scores)[0]
    exact = pull_back(eager, *wide, grad_scores)
    plain = pull_back(eager, images.float(), texts.float(), grad_scores)
    rounding = 0.0
    if images.dtype != torch.float32:  # weights and result are rounded to the inputs' type
        rounding = 2 * torch.finfo(images.dtype).eps * float(exact.abs().max())
    return {
        # eager rounds its cosines too, and a weight exp(16 c) feels that sixteenfold
        name: gate(
            pull_back(call, images, texts, grad_scores),
            exact,
            plain,
            rounding * (16 if name in ("eager", "compiled") else 1),
        )
        for name, call in calls.items()
    }


def shapes(device: torch.device, scale: str) -> list[Shape]:
    """Batches to run: "tiny" (tests), "default" or "full"."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    batches = {"tiny": [12]}.get(scale) or ([1024, 4096] if device.type == "cuda" else [256])
    dims = {"tiny": [32], "full": [256, 512, 1024]}.get(scale) or (
        [1024] if device.type == "cuda" else [256]
    )
    return [Shape(batch, batch, 4, dim, dtype) for batch in batches for dim in dims]


def run(shape: Shape, report: Report, *, compiled: bool, seconds: float) -> None:
    """Gate, memory and time of every variant on one batch."""
    images, texts = shape.sets(report.device)
    calls, note = scorers(images, texts, compiled)
    calls.pop("reference", None)  # the eager formula on fp32 inputs
    if note:
        print(f"{shape}: {note}", file=sys.stderr)
    verdicts = judge(calls, images, texts)
    green: dict[str, Callable[[], Tensor]] = {
        n: partial(gradient, calls[n], images, texts) for n, v in verdicts.items() if v.green
    }
    green["matmul"] = partial(matmul, images, texts)
    memory = {name: peak_bytes(call, report.device) for name, call in green.items()}
    times = time_interleaved(green, report.device, seconds=seconds)
    for name in [*calls, "matmul"]:
        figures = {}
        if name in times:
            figures = {
                "ms": statistics.median(times[name]),
                "x eager": ratio(times, "eager", name) if "eager" in times else None,
                "matmuls": ratio(times, name, "matmul"),
                "peak MB": None if memory[name] is None else memory[name] / 1e6,
            }
        report.add(verdicts.get(name), shape=str(shape), variant=name, **figures)


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--full", action="store_true", help="more dimensions")
    arguments.add_argument("--tiny", action="store_true", help="tiny shapes: a rehearsal")
    arguments.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    args = arguments.parse_args()
    report = Report("bench_training", args)
    scale = "tiny" if args.tiny else "full" if args.full else "default"
    for shape in shapes(report.device, scale):
        run(shape, report, compiled=not args.no_compile, seconds=args.seconds)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
