"""Which launches `bench/sass.py` compiles: a new kernel is one function and its rows here.

An operation launches its kernels through their own launchers, on tensors without data. Guarded
cases have a budget in sass_budgets.json that tests/test_sass.py holds them to on sm_90.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from divse_kernels import candidates, smooth_chamfer_backward, smooth_chamfer_forward
from divse_kernels.launch import Side

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SCORES, TRAINING, FEW = (1024, 65_536), (128, 640), (1, 1_000_000)  # query sets, gallery sets
RERANKED = (64, 1_000_000)


@dataclass(frozen=True)
class Case:
    """A call: B query sets of K elements against N gallery sets of L, D dimensions."""

    operation: str
    k: int
    dims: int
    sets: tuple[int, int] = SCORES
    alpha: float | None = 16.0  # None: a tensor, whose value only the device knows
    dtype: str = "bf16"
    ragged: bool = False
    size: int | None = None  # L; None: the same as K

    @property
    def shape(self) -> str:
        """Sizes and variant in words."""
        alpha = "tensor" if self.alpha is None else f"{self.alpha:g}"
        size = "" if self.size is None else f"L={self.size} "
        text = f"{self.sets[0]}x{self.sets[1]} K={self.k} {size}D={self.dims} {self.dtype}"
        return f"{text} alpha={alpha}" + " ragged" * self.ragged

    @property
    def queries(self) -> Side:
        """(B, K, D) without data."""
        return self.side(self.sets[0], self.k)

    @property
    def gallery(self) -> Side:
        """(N, L, D) without data."""
        return self.side(self.sets[1], self.size or self.k)

    def side(self, count: int, size: int) -> Side:
        """(count, size, D) without data, with lengths if the case is ragged."""
        lengths = absent(count, dtype=torch.int64) if self.ragged else None
        return Side.of(absent(count, size, self.dims, dtype=TYPES[self.dtype]), lengths)

    @property
    def level(self) -> float | Tensor:
        """Alpha as launchers take it."""
        return absent(dtype=torch.float32) if self.alpha is None else self.alpha


def absent(*shape: int, dtype: torch.dtype) -> Tensor:
    """A tensor without data."""
    return torch.empty(shape, dtype=dtype, device="meta")


def scores(case: Case) -> None:
    """All pairs."""
    smooth_chamfer_forward.scores(case.queries, case.gallery, case.level, False)


def gradient(case: Case) -> None:
    """Gradient of all pairs, for the queries and, where alpha is learned, for alpha."""
    grad_scores = absent(*case.sets, dtype=torch.float32)
    learned = case.alpha is None
    smooth_chamfer_backward.gradient(
        case.queries, case.gallery, grad_scores, case.level, with_moment=learned
    )


def reranked(case: Case) -> None:
    """A thousand candidates for every query."""
    chosen = absent(case.sets[0], 1000, dtype=torch.int64)
    candidates.scores(case.queries, case.gallery, chosen, case.level, False)


OPERATIONS: dict[str, Callable[[Case], Any]] = {
    "scores": scores,
    "gradient": gradient,
    "candidates": reranked,
}

#: One row a path that matters for speed; every one is compiled by the tests, so they are few.
GUARDED = (
    Case("scores", 4, 1024),
    Case("scores", 4, 256),
    Case("scores", 8, 512),
    Case("scores", 16, 256),
    Case("scores", 4, 1024, alpha=200.0),
    Case("scores", 4, 1024, FEW),
    Case("gradient", 4, 1024),
)

#: Compiled by `bench/sass.py` only.
OTHERS = (
    *(Case("scores", 4, dims) for dims in (128, 512)),
    *(Case("scores", 4, 1024, alpha=alpha) for alpha in (30.0, 60.0, None)),
    Case("scores", 4, 1024, TRAINING),
    Case("scores", 4, 1024, dtype="fp16"),
    Case("scores", 4, 1024, dtype="fp32"),
    Case("scores", 4, 1024, ragged=True),
    Case("scores", 6, 1024),
    Case("scores", 32, 128),
    *(Case("gradient", 4, dims) for dims in (256, 512)),
    *(Case("gradient", 4, 1024, alpha=alpha) for alpha in (200.0, None)),
    Case("gradient", 4, 1024, TRAINING),
    Case("gradient", 4, 1024, dtype="fp16"),
    Case("gradient", 4, 1024, dtype="fp32"),
    Case("gradient", 4, 1024, ragged=True),
    Case("gradient", 32, 128),
    Case("candidates", 4, 1024, RERANKED),
    Case("candidates", 4, 1024, RERANKED, dtype="fp32"),
    Case("candidates", 4, 1024, RERANKED, ragged=True),
    Case("candidates", 32, 128, RERANKED),
)


def predicted() -> list[Case]:
    """The grid of the prediction: all pairs of sets of one size, as many cosines in each."""
    base = Case("scores", 4, 1024)
    return [
        replace(base, k=k, dims=dims, sets=(SCORES[0] * 4 // k, SCORES[1] * 4 // k))
        for k in (4, 8, 16, 32)
        for dims in (128, 256, 512, 1024)
    ]
