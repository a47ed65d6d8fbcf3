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

from divse_kernels import (
    best,
    candidates,
    int8_codes,
    int8_scan,
    long_backward,
    long_pairs,
    long_sets,
    mining,
    pair_gradients,
    pairs,
    rbf,
    score_backward,
    search_scan,
    smooth_chamfer_forward,
)
from divse_kernels.launch import Side
from divse_kernels.ops import MAX_SIZE
from divse_kernels.row_column_lse import log_sum_exps

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
    similarity: str = "smooth_chamfer"

    @property
    def shape(self) -> str:
        """Sizes and variant in words."""
        alpha = "tensor" if self.alpha is None else f"{self.alpha:g}"
        size = "" if self.size is None else f"L={self.size} "
        text = f"{self.sets[0]}x{self.sets[1]} K={self.k} {size}D={self.dims} {self.dtype}"
        kind = f"alpha={alpha}" if self.similarity == "smooth_chamfer" else self.similarity
        return f"{text} {kind}" + " ragged" * self.ragged

    @property
    def long(self) -> bool:
        """Whether it goes to the kernels of long sets."""
        return max(self.k, self.size or self.k) > MAX_SIZE

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
    arguments = (case.queries, case.gallery, case.level, False, case.similarity)
    if case.long:
        long_sets.scores(*arguments)
    else:
        smooth_chamfer_forward.scores(*arguments)


def gradient(case: Case) -> None:
    """Gradient of all pairs for both sides and, where alpha is learned, for alpha."""
    grad_scores = absent(*case.sets, dtype=torch.float32)
    wanted = (True, True, case.alpha is None)
    if case.long:
        sides = case.queries, case.gallery
        long_backward.gradients(*sides, grad_scores, case.level, case.similarity, wanted)
        return
    loss = score_backward.Loss(grad_scores)
    score_backward.gradients(
        case.queries, case.gallery, loss, case.level, similarity=case.similarity, wanted=wanted
    )


def reranked(case: Case) -> None:
    """A thousand candidates for every query."""
    chosen = absent(case.sets[0], 1000, dtype=torch.int64)
    if case.long:
        names = long_sets.Names(None, chosen)
        sides = case.queries, case.gallery
        long_sets.named_scores(*sides, names, case.level, False, case.similarity)
        return
    candidates.scores(case.queries, case.gallery, chosen, case.level, False, case.similarity)


def hardest_negatives(case: Case) -> None:
    """One for each set of both sides."""
    groups = (absent(count, dtype=torch.int64) for count in case.sets)
    mining.mine(case.queries, case.gallery, *groups, 1, case.level, False, case.similarity)


def smooth_maxima(case: Case) -> None:
    """Of all scores, both ways, and their gradient, where the scores are computed again."""
    groups = [absent(count, dtype=torch.int64) for count in case.sets]
    log_sum_exps(case.queries, case.gallery, *groups, 0.05, case.level, False, case.similarity)
    statistics = (
        score_backward.LogSumExps(*(absent(n, dtype=torch.float32) for _ in range(2)), group)
        for n, group in zip(case.sets, groups, strict=True)
    )
    loss = score_backward.Loss(None, *statistics, 0.05)
    wanted = (True, True, case.alpha is None)
    score_backward.gradients(
        case.queries, case.gallery, loss, case.level, similarity=case.similarity, wanted=wanted
    )


def discrepancy(case: Case) -> None:
    """The mean of an RBF kernel over all pairs of elements, and its gradient."""
    x, y = (side.values.flatten(0, 1) for side in (case.queries, case.gallery))
    elements = rbf.Pairs(x, y)
    elements.mean()
    elements.gradients(absent(dtype=torch.float32), (True, True))


def touched(case: Case) -> None:
    """Scores and gradients of the pairs of a triplet loss: three for each set."""
    count = 3 * case.sets[0]
    ids = [absent(count, dtype=torch.int64) for _ in range(2)]
    if case.long:
        grad_scores = absent(count, dtype=torch.float32)
        wanted = (True, True, case.alpha is None)
        long_pairs.gradients(
            case.queries, case.gallery, *ids, grad_scores, case.level, case.similarity, wanted
        )
        return
    scores, weights, _ = pairs.scores(
        case.queries, case.gallery, *ids, case.level, False, case.similarity, with_weights=True
    )
    pair_gradients.gradient(case.queries, case.gallery, *ids, weights, scores)


def searched(case: Case) -> None:
    """The scan of a search for the best ten, with excluded sets, and the merge after it."""
    side, gallery, device = case.queries, case.gallery, torch.device("meta")
    kept = best.Best(side.count, 10, device)
    excluded = absent(gallery.count // 8 + 1, dtype=torch.uint8)
    scan = search_scan.ExactScan(side, case.alpha, False, excluded, gallery.count, case.similarity)
    scan((gallery.values, gallery.lengths), 0, kept)
    kept.merge()


def searched_by_codes(case: Case) -> None:
    """The scan of a search over int8 codes."""
    side, gallery, device = case.queries, case.gallery, torch.device("meta")
    coded = int8_codes.CodedQueries.of(side.values, side.lengths, case.k, case.alpha)
    survivors = absent(side.count, dtype=torch.int64)
    scan = int8_scan.CertifiedScan(coded, side, case.alpha, False, None, survivors, case.similarity)
    codes = absent(*gallery.values.shape, dtype=torch.int8)
    scales, residuals = (absent(*codes.shape[:2], dtype=torch.float32) for _ in range(2))
    scan.launch(Side(codes, None), scales, residuals, 0, best.Best(side.count, 10, device))


OPERATIONS: dict[str, Callable[[Case], Any]] = {
    "scores": scores,
    "gradient": gradient,
    "candidates": reranked,
    "hardest_negatives": hardest_negatives,
    "pairs": touched,
    "log_sum_exps": smooth_maxima,
    "discrepancy": discrepancy,
    "search": searched,
    "int8_search": searched_by_codes,
}

#: One row a path that matters for speed; every one is compiled by the tests, so they are few.
GUARDED = (
    Case("scores", 4, 1024),
    Case("scores", 8, 512),
    Case("scores", 16, 256),
    Case("scores", 32, 128),
    Case("scores", 4, 1024, alpha=200.0),
    Case("scores", 4, 1024, ragged=True),
    Case("scores", 4, 1024, FEW),
    Case("scores", 4, 1024, similarity="maxsim"),
    Case("scores", 128, 128, (16, 32_768), similarity="maxsim", size=32),
    Case("gradient", 4, 1024, (4096, 4096)),
    Case("gradient", 32, 128, (64, 128), similarity="maxsim", size=300, ragged=True),
    Case("gradient", 32, 128, (64, 128), size=1024),
    Case("candidates", 4, 1024, RERANKED),
    Case("candidates", 32, 128, (64, 32_768), similarity="maxsim", size=300, ragged=True),
    Case("hardest_negatives", 4, 1024, (4096, 4096)),
    Case("pairs", 4, 1024, (4096, 4096)),
    Case("log_sum_exps", 4, 1024, (4096, 4096)),
    Case("discrepancy", 4, 1024, (4096, 4096)),
    Case("search", 4, 1024, FEW),
    Case("search", 4, 1024, (64, 1_000_000)),
    Case("search", 32, 128, (16, 32_768), similarity="maxsim", size=300),
    Case("int8_search", 4, 1024, FEW),
    Case("int8_search", 4, 1024, (64, 1_000_000)),
)

#: Compiled by `bench/sass.py` only.
OTHERS = (
    *(Case("scores", 4, dims) for dims in (128, 256, 512)),
    *(Case("scores", 4, 1024, alpha=alpha) for alpha in (30.0, 60.0, None)),
    Case("scores", 4, 1024, TRAINING),
    Case("scores", 4, 1024, dtype="fp16"),
    Case("scores", 4, 1024, dtype="fp32"),
    Case("scores", 6, 1024),
    *(Case("scores", 4, 1024, similarity=name) for name in ("chamfer", "mil")),
    Case("scores", 1024, 128, (4, 1024), similarity="maxsim"),
    Case("scores", 64, 128, (1024, 4096)),
    *(Case("scores", 32, 128, (32, 32_768), similarity="maxsim", size=n) for n in (300, 1024)),
    *(Case("gradient", 4, dims) for dims in (256, 512)),
    *(Case("gradient", 4, 1024, alpha=alpha) for alpha in (200.0, None)),
    Case("gradient", 4, 1024, TRAINING),
    Case("gradient", 4, 1024, dtype="fp16"),
    Case("gradient", 4, 1024, dtype="fp32"),
    Case("gradient", 4, 1024, ragged=True),
    Case("gradient", 32, 128),
    *(Case("gradient", 4, 1024, similarity=name) for name in ("chamfer", "maxsim", "mil")),
    *(
        Case("gradient", 200, 128, (16, 32), similarity=name, size=300)
        for name in ("chamfer", "mil")
    ),
    *(Case("gradient", 100, 128, (16, 32), alpha=alpha, size=300) for alpha in (200.0, None)),
    Case("gradient", 100, 1024, (16, 32), size=300),
    Case("gradient", 200, 128, (16, 32), size=300, ragged=True),
    *(Case("gradient", 32, 128, (64, 128), dtype=t, size=300) for t in ("fp16", "fp32")),
    Case("pairs", 32, 128, (64, 64), size=300),
    Case("pairs", 200, 128, (64, 64), alpha=None, size=300, ragged=True),
    *(Case("candidates", k, 128, (64, 32_768), size=300) for k in (4, 32, 100, 200)),
    Case("candidates", 32, 1024, (64, 32_768), similarity="maxsim", size=300),
    Case("candidates", 32, 128, (64, 32_768), dtype="fp32", size=300),
    Case("hardest_negatives", 4, 1024, (4096, 4096), alpha=200.0),
    Case("hardest_negatives", 1, 1024, (4096, 4096)),
    *(Case("pairs", k, 1024, (4096, 4096)) for k in (1, 32)),
    Case("pairs", 4, 1024, (4096, 4096), alpha=None, ragged=True),
    *(Case("log_sum_exps", 4, 1024, (4096, 4096), alpha=alpha) for alpha in (200.0, None)),
    Case("log_sum_exps", 4, 1024, (4096, 4096), ragged=True),
    Case("log_sum_exps", 4, 1024, (4096, 4096), dtype="fp32"),
    Case("log_sum_exps", 4, 256, (4096, 4096)),
    Case("discrepancy", 4, 256, (4096, 4096)),
    Case("discrepancy", 4, 1024, (4096, 4096), dtype="fp32"),
    Case("search", 4, 1024, (1024, 1_000_000)),
    Case("int8_search", 4, 1024, (1024, 1_000_000)),
    Case("search", 4, 1024, (16, 1_000_000), ragged=True),
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
