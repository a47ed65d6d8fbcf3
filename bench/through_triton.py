"""Do training and search really run through the Triton kernels? Proof by call counter and numbers.

Trains two small towers for a few steps with the real loss (hardest-negative triplet + MMD +
diversity) on impl="triton", checks its first gradient against impl="reference", then searches and
compares with the reference's top 10. Fails if a number differs or a kernel was never launched. On
a CPU set TRITON_INTERPRET=1: slow, tiny, and the same code path.

    python bench/through_triton.py [--device cuda|cpu] [--json] [--out [DIR]]
"""

from __future__ import annotations

import sys

import torch
from harness import Verdict, gate
from report import Report, parser
from torch import Tensor, nn

import divse
from divse.models import SetOutput
from divse.sets import normalize
from divse.similarity import calls
from divse.training.config import LossConfig
from divse.training.losses import set_loss


class Towers(nn.Module):
    """One linear map of features (N, F) to sets (N, K, D) for each modality."""

    def __init__(self, features: int, k: int, dim: int) -> None:
        super().__init__()
        self.k, self.maps = k, nn.ModuleList(nn.Linear(features, k * dim) for _ in range(2))

    def forward(self, pictures: Tensor, captions: Tensor) -> list[SetOutput]:
        """Sets of both modalities."""
        slots = [
            m(x).unflatten(1, (self.k, -1))
            for m, x in zip(self.maps, (pictures, captions), strict=True)
        ]
        return [SetOutput(normalize(s), s) for s in slots]


def pairs(n: int, features: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy views (n, F) and (2 n, F) of n things, and which belong together (n, 2 n)."""
    generator = torch.Generator().manual_seed(0)
    things = torch.randn(n, features, generator=generator)
    captions = things.repeat_interleave(2, 0)
    captions = captions + 0.5 * torch.randn(captions.shape, generator=generator)
    positives = torch.arange(n)[:, None] == torch.arange(n).repeat_interleave(2)
    return things.to(device), captions.to(device), positives.to(device)


def gradient(model: Towers, data: tuple[Tensor, Tensor, Tensor], impl: str, dtype: torch.dtype):
    """Loss and its flat gradient."""
    model.zero_grad()
    pictures, captions, positives = data
    images, texts = model(pictures.to(dtype), captions.to(dtype))
    loss = set_loss(images, texts, positives, LossConfig(), impl=impl).total
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])


def train(report: Report, n: int, k: int, dim: int, steps: int) -> Towers:
    """Check the gradient, then train a few steps; the loss must fall."""
    torch.manual_seed(0)
    model = Towers(32, k, dim).to(report.device)
    data = pairs(n, 32, report.device)
    _, plain = gradient(model, data, "reference", torch.float32)
    _, exact = gradient(model.double(), data, "reference", torch.float64)
    _, fused = gradient(model.float(), data, "triton", torch.float32)
    report.add(gate(fused, exact, plain), check="gradient of the training loss")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        losses.append(float(gradient(model, data, "triton", torch.float32)[0]))
        optimizer.step()
    fell = Verdict(losses[-1] / losses[0], 0.9)
    report.add(fell, check=f"loss after {steps} steps, share of the first")
    return model


def search(report: Report, model: Towers, n: int) -> None:
    """The top 10 of every picture among the captions, against the reference in float64."""
    pictures, captions, _ = pairs(n, 32, report.device)
    with torch.no_grad():
        images, texts = (output.sets for output in model(pictures, captions))
    wide = divse.search(images.double(), texts.double(), 10, unit_norm=False, impl="reference")
    plain = divse.search(images, texts, 10, unit_norm=False, impl="reference")
    fused = divse.search(images, texts, 10, unit_norm=False, impl="triton")
    report.add(gate(fused.scores, wide.scores, plain.scores), check="scores of the top 10")
    differing = float((fused.ids != wide.ids).float().mean())
    report.add(Verdict(differing, 0.01), check="share of the top 10 that differs (rounding)")


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--tiny", action="store_true", help="tiny shapes: a rehearsal")
    args = arguments.parse_args()
    report = Report("through_triton", args)
    n, k, dim, steps = (8, 2, 32, 4) if args.tiny else (256, 4, 128, 30)
    model = train(report, n, k, dim, steps)
    search(report, model, n)
    import divse_kernels

    for kernel, count in sorted(divse_kernels.launches.items()):
        report.add(check=f"launches of {kernel}", count=count)
    unused = 0 if len(divse_kernels.launches) >= 2 and calls["triton.scores"] else 1
    report.add(Verdict(unused, 0), check="kernels, forward and backward, that never ran")
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
