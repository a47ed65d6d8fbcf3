"""Measured ceilings of this device: how fast it reads memory and how fast it multiplies.

Datasheet rates are leads; a floor in these benches is always built from what is measured here.
Read = sum over a large fp32 tensor; copy counts bytes read and written; matmul = square product
on random data (zeros run faster and prove nothing). Each figure is the best median of two rounds.

    python bench/roofline.py [--device cuda|cpu] [--json] [--out DIR]
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass

import torch
from harness import time_interleaved
from report import Report, parser


@dataclass(frozen=True)
class Roofline:
    """Ceilings: bytes a second read and copied, floating-point operations a second by dtype."""

    read: float
    copy: float
    matmul: dict[torch.dtype, float]

    @property
    def best_matmul(self) -> float:
        """Operations a second of the fastest type."""
        return max(self.matmul.values())

    def floor_ms(self, operations: float, moved: float, dtype: torch.dtype) -> float:
        """Least time for that many operations and bytes: the larger of the two."""
        rate = self.matmul.get(dtype) or self.best_matmul
        return 1000 * max(operations / rate, moved / self.read)


def measure(device: torch.device, *, small: bool = False, seconds: float = 1.0) -> Roofline:
    """Measure the ceilings of ``device``; ``small`` shapes serve tests only."""
    gpu = device.type == "cuda"
    count = (1 << 20) if small else (1 << 30) if gpu else (1 << 26)
    size = 128 if small else 8192 if gpu else 2048
    dtypes = (torch.bfloat16, torch.float16, torch.float32) if gpu else (torch.float32,)
    read, copy = _memory_rates(count, device, seconds)
    matmul = {dtype: _matmul_rate(size, dtype, device, seconds) for dtype in dtypes}
    return Roofline(read, copy, matmul)


def _memory_rates(count: int, device: torch.device, seconds: float) -> tuple[float, float]:
    values = torch.rand(count, device=device)
    target = torch.empty_like(values)
    read = min(_medians(values.sum, device, seconds))
    copy = min(_medians(lambda: target.copy_(values), device, seconds))
    return 4 * count / read * 1000, 8 * count / copy * 1000


def _matmul_rate(size: int, dtype: torch.dtype, device: torch.device, seconds: float) -> float:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / min(_medians(lambda: a @ b, device, seconds)) * 1000


def _medians(call, device: torch.device, seconds: float) -> list[float]:
    return [
        statistics.median(time_interleaved({"it": call}, device, seconds=seconds / 2)["it"])
        for _ in range(2)
    ]


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--small", action="store_true", help="tiny shapes: a rehearsal")
    args = arguments.parse_args()
    report = Report("roofline", args)
    found = measure(report.device, small=args.small, seconds=args.seconds)
    report.add(ceiling="read", value=found.read / 1e9, unit="GB/s")
    report.add(ceiling="copy (read + write)", value=found.copy / 1e9, unit="GB/s")
    for dtype, rate in found.matmul.items():
        name = str(dtype).removeprefix("torch.")
        report.add(ceiling=f"matmul {name}", value=rate / 1e12, unit="TFLOP/s")
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
