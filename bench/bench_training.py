"""Forward and backward of the training losses on Smooth-Chamfer scores, beside one matmul.

    triplet    hinge against the hardest negative, both ways: touches 3 B of the B x B pairs
    info_nce   cross-entropy of every positive against all negatives, both ways: touches all pairs
    mmd        discrepancy of the elements of both sides

    eager      in plain torch, scores by the formula in the inputs' type
    compiled   torch.compile of the same
    native     divse.training.losses on impl="native" (CPU)
    triton     divse.training.losses on impl="triton" (GPU)
    matmul     one product of the batch's elements: a dense loss needs four, forward and backward

B pictures against B captions, K = 4, each the other's only positive. Columns: ms (median), matmuls
(how many products it costs), x eager, peak MB beyond inputs, error and gate. The gate judges the
loss and the gradients of both sides against float64, in batches of at most 2,048; a variant that by
design rounds its cosines is judged by its loss alone, within that rounding.

Beyond its inputs, of 0.5 GiB a side, a batch of 65,536 (K = 4, D = 1024, bfloat16) needs by
arithmetic at most 5.25 GiB with "triton": backward, sums in float32 2 GiB, operands in float16
1 GiB, weights of a chunk 0.25 GiB; gradients 1 GiB and, for MMD, one side in float32 1 GiB. Its
scores alone would be 16 GiB, its cosines 256 GiB.

    python bench/bench_training.py [--full] [--device cuda|cpu] [--json] [--out [DIR]]
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from functools import partial

import torch
from harness import EPS32, Verdict, peak_bytes, ratio, time_interleaved
from report import Report, parser
from scorers import ROUNDING, eager, matmul
from shapes import Shape
from torch import Tensor
from torch.nn.functional import softplus

import divse
from divse.models import SetOutput
from divse.training import losses
from divse.training.config import LossConfig

MARGIN, TEMPERATURE, JUDGED = 0.2, 0.05, 2048
Loss = Callable[[Tensor, Tensor], Tensor]


def triplet(scores: Tensor) -> Tensor:
    """Hinge against the hardest negative both ways; scores (B, B), positives on the diagonal."""
    own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    negatives, positives = scores.masked_fill(own, float("-inf")), scores.diagonal()
    both = (negatives.amax(1) - positives, negatives.amax(0) - positives)
    return sum(((MARGIN + gap).clamp(min=0).mean() for gap in both), scores.new_zeros(()))


def info_nce(scores: Tensor) -> Tensor:
    """Cross-entropy of the diagonal against the rest of its row and of its column."""
    own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    logits = scores / TEMPERATURE
    negatives, positives = logits.masked_fill(own, float("-inf")), logits.diagonal()
    both = (negatives.logsumexp(1) - positives, negatives.logsumexp(0) - positives)
    return sum((softplus(gap).mean() for gap in both), scores.new_zeros(()))


def mmd(images: Tensor, texts: Tensor) -> Tensor:
    """Maximum mean discrepancy with kernel exp(-|x - y| / 2)."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-0.5 * torch.cdist(a, b)).mean()

    wide = torch.promote_types(images.dtype, torch.float32)  # cdist knows no half precision
    x, y = images.flatten(0, 1).to(wide), texts.flatten(0, 1).to(wide)
    return kernel(x, x) - 2 * kernel(x, y) + kernel(y, y)


FORMULAS: dict[str, Loss] = {
    "triplet": lambda images, texts: triplet(eager(images, texts)),
    "info_nce": lambda images, texts: info_nce(eager(images, texts)),
    "mmd": mmd,
}


def shipped(name: str, impl: str, images: Tensor, texts: Tensor) -> Tensor:
    """The loss that training takes."""
    if name == "mmd":
        return losses.mmd(images, texts, impl)
    config = LossConfig(name, margin=MARGIN, temperature=TEMPERATURE, mmd=0.0, diversity=0.0)
    positives = torch.arange(len(images), device=images.device)
    sides = (SetOutput(x, x) for x in (images, texts))
    return losses.set_loss(*sides, positives, config, impl=impl, recall=False).ranking


def variants(name: str, images: Tensor, compiled: bool) -> tuple[dict[str, Loss], str]:
    """The losses that can run here, and a note on those that cannot."""
    found: dict[str, Loss] = {"eager": FORMULAS[name]}
    if compiled:
        torch.compiler.reset()
        found["compiled"] = torch.compile(FORMULAS[name], dynamic=False)
    impl = "triton" if images.is_cuda else "native"
    try:
        divse.explain(images[:1], images[:1], impl=impl)
    except ValueError as error:
        return found, str(error)
    found[impl] = partial(shipped, name, impl)
    return found, ""


def backward(loss: Loss, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One step's share of the loss: its value and the gradients of both sides."""
    images, texts = images.detach().requires_grad_(), texts.detach().requires_grad_()
    value = loss(images, texts)
    return value.detach(), *torch.autograd.grad(value, (images, texts))


def judge(name: str, variant: str, loss: Loss, images: Tensor, texts: Tensor) -> Verdict:
    """Gate one variant: the worst of its loss and gradients, as a share of what is allowed."""
    images, texts = images[:JUDGED], texts[:JUDGED]
    exact = backward(FORMULAS[name], images.double(), texts.double())
    plain = backward(FORMULAS[name], images.float(), texts.float())
    got = backward(loss, images, texts)
    eps = torch.finfo(images.dtype).eps
    if variant in ROUNDING and images.dtype != torch.float32 and name != "mmd":
        steep = 4 / TEMPERATURE if name == "info_nce" else 4  # how much a cosine moves the loss
        return Verdict(float((got[0].double() - exact[0]).abs()), steep * eps)
    worst = 0.0
    for i, (mine, right, single) in enumerate(zip(got, exact, plain, strict=True)):
        scale = float(right.abs().max())
        allowed = 2 * float((single.double() - right).abs().max()) + 8 * EPS32 * max(scale, 1e-9)
        if i and images.dtype != torch.float32:  # weights and result are of the inputs' type
            allowed += 2 * eps * scale
        error = float((mine.double() - right).abs().max())
        worst = max(worst, error / allowed) if error == error else float("nan")
    return Verdict(worst, 1.0)


def shapes(device: torch.device, scale: str) -> list[Shape]:
    """Batches to run: "tiny" (tests), "chosen" or "full"."""
    if scale == "tiny":
        return [Shape(12, 12, 4, 32, torch.float32)]
    if device.type != "cuda":
        return [Shape(256, 256, 4, 256, torch.float32)]
    batches = (1024, 2048, 4096, 16_384, 65_536) if scale == "full" else (4096,)
    return [Shape(batch, batch, 4, 1024, torch.bfloat16) for batch in batches]


def run(name: str, shape: Shape, report: Report, *, compiled: bool, seconds: float) -> None:
    """Gate, memory and time of every variant of a loss on one batch."""
    images, texts = shape.sets(report.device)
    calls, note = variants(name, images, compiled)
    if note:
        print(f"{shape}: {note}", file=sys.stderr)
    verdicts = {v: judge(name, v, call, images, texts) for v, call in calls.items()}
    green: dict[str, Callable[[], object]] = {
        v: partial(backward, calls[v], images, texts) for v in calls if verdicts[v].green
    }
    memory, failed = {}, {}
    for variant, call in list(green.items()):
        try:
            memory[variant] = peak_bytes(call, report.device)
        except torch.OutOfMemoryError:
            failed[variant] = "out of memory"
            del green[variant]
            torch.cuda.empty_cache()
    if shape.cosines <= 1 << 34:  # its result alone would fill the device
        green["matmul"] = partial(matmul, images, texts)
        memory["matmul"] = peak_bytes(green["matmul"], report.device)
    times = time_interleaved(green, report.device, seconds=seconds)
    for variant in [*calls, "matmul"]:
        row = {"loss": name, "B": shape.queries, "K": shape.k, "D": shape.dim, "variant": variant}
        report.add(verdicts.get(variant), **row | speed(variant, times, memory, failed))


def speed(
    variant: str,
    times: dict[str, list[float]],
    memory: dict[str, int | None],
    failed: dict[str, str],
) -> dict[str, object]:
    """The figures of a variant that was timed, or why it was not."""
    if variant not in times:
        return {"note": failed[variant]} if variant in failed else {}
    used = memory[variant]
    return {
        "ms": statistics.median(times[variant]),
        "matmuls": ratio(times, variant, "matmul") if "matmul" in times else None,
        "x eager": ratio(times, "eager", variant) if "eager" in times else None,
        "peak MB": None if used is None else used / 1e6,
    }


def main() -> int:
    """Run all losses on all batches."""
    arguments = parser(__doc__)
    arguments.add_argument("--full", action="store_true", help="batches of 1,024 to 65,536")
    arguments.add_argument("--tiny", action="store_true", help="tiny shapes: a rehearsal")
    arguments.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    args = arguments.parse_args()
    report = Report("bench_training", args)
    scale = "tiny" if args.tiny else "full" if args.full else "chosen"
    for shape in shapes(report.device, scale):
        for name in FORMULAS:
            compiled = not args.no_compile and shape.queries <= 4096
            run(name, shape, report, compiled=compiled, seconds=args.seconds)
            if report.device.type == "cuda":
                torch.cuda.empty_cache()
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
