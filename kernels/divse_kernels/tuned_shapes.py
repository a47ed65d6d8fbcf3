"""The launches that `python -m divse_kernels.autotune` tunes, those that matter most first."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import divse_kernels
from divse_kernels.search import search

Call = Callable[[], Any]


def unit(*shape: int) -> Tensor:
    """Random unit vectors on the GPU."""
    values = torch.randn(*shape, device="cuda", dtype=torch.bfloat16)
    return torch.nn.functional.normalize(values, dim=-1)


def scores(queries: int, gallery: int, k: int, dims: int) -> Call:
    """All pairs."""
    return partial(divse_kernels.smooth_chamfer, unit(queries, k, dims), unit(gallery, k, dims))


def maxsim(queries: int, gallery: int, k: int, size: int, dims: int) -> Call:
    """MaxSim of long queries."""
    sides = unit(queries, k, dims), unit(gallery, size, dims)
    return partial(divse_kernels.scores, *sides, "maxsim")


def gradient(batch: int, k: int, dims: int) -> Call:
    """Gradient of all pairs."""
    q, g = (unit(batch, k, dims).requires_grad_() for _ in range(2))
    weights = torch.randn(batch, batch, device="cuda")
    loss = lambda: (divse_kernels.smooth_chamfer(q, g) * weights).sum()  # noqa: E731
    return lambda: torch.autograd.grad(loss(), (q, g))


def maxsim_gradient(batch: int, k: int, size: int, dims: int) -> Call:
    """Gradient of MaxSim of long sets, all pairs."""
    q, g = unit(batch, k, dims).requires_grad_(), unit(batch, size, dims).requires_grad_()
    return lambda: torch.autograd.grad(divse_kernels.scores(q, g, "maxsim").sum(), (q, g))


def reranked(queries: int, gallery: int, k: int, size: int, dims: int) -> Call:
    """A hundred long sets for each query."""
    chosen = torch.randint(gallery, (queries, 100), device="cuda")
    sides = unit(queries, k, dims), unit(gallery, size, dims)
    return partial(divse_kernels.score_candidates, *sides, chosen, "maxsim")


def negatives(batch: int, k: int, dims: int) -> Call:
    """Hardest negatives of both sides."""
    groups = torch.arange(batch, device="cuda")
    sides = unit(batch, k, dims), unit(batch, k, dims)
    return partial(divse_kernels.hardest_negatives, *sides, groups, groups)


def touched(batch: int, k: int, dims: int) -> Call:
    """Scores of the pairs of a triplet loss, three for each set, and their gradient."""
    q, g = (unit(batch, k, dims).requires_grad_() for _ in range(2))
    ids = [torch.randint(batch, (3 * batch,), device="cuda") for _ in range(2)]
    return lambda: torch.autograd.grad(divse_kernels.score_pairs(q, g, *ids).sum(), (q, g))


def log_sum_exps(batch: int, k: int, dims: int) -> Call:
    """Log-sum-exps both ways, and their gradient."""
    q, g = (unit(batch, k, dims).requires_grad_() for _ in range(2))
    groups = torch.arange(batch, device="cuda")
    both = partial(divse_kernels.row_column_lse, q, g, groups, groups, temperature=0.05)
    return lambda: torch.autograd.grad(torch.cat(both()).sum(), (q, g))


def discrepancy(elements: int, dims: int) -> Call:
    """The mean of an RBF kernel, and its gradient."""
    x, y = (unit(elements, dims).requires_grad_() for _ in range(2))
    return lambda: torch.autograd.grad(divse_kernels.rbf_mean(x, y), (x, y))


def found(queries: int, gallery: int, k: int, dims: int) -> Call:
    """The best ten."""
    return partial(search, unit(queries, k, dims), unit(gallery, k, dims), 10)


def certified(queries: int, gallery: int, k: int, dims: int) -> Call:
    """The best ten by int8 codes."""
    sets = unit(gallery, k, dims)
    codes = divse_kernels.quantise(sets)
    return partial(divse_kernels.certified_search, unit(queries, k, dims), sets, *codes, 10)


def candidates(queries: int, gallery: int, k: int, dims: int) -> Call:
    """A thousand sets for each query."""
    chosen = torch.randint(gallery, (queries, 1000), device="cuda")
    sides = unit(queries, k, dims), unit(gallery, k, dims)
    return partial(divse_kernels.score_candidates, *sides, chosen)


SHAPES: dict[str, Callable[[], Call]] = {
    "scores 1024 x 65536 K=4 D=1024": partial(scores, 1024, 65_536, 4, 1024),
    "scores 1024 x 131072 K=4 D=256": partial(scores, 1024, 131_072, 4, 256),
    "search 1 x 524288 K=4 D=1024": partial(found, 1, 524_288, 4, 1024),
    "search 64 x 524288 K=4 D=1024": partial(found, 64, 524_288, 4, 1024),
    "negatives 4096 K=4 D=1024": partial(negatives, 4096, 4, 1024),
    "pairs 4096 K=4 D=1024": partial(touched, 4096, 4, 1024),
    "log-sum-exps 4096 K=4 D=1024": partial(log_sum_exps, 4096, 4, 1024),
    "gradient 4096 K=4 D=1024": partial(gradient, 4096, 4, 1024),
    "rbf 16384 D=1024": partial(discrepancy, 16_384, 1024),
    "int8 1 x 524288 K=4 D=1024": partial(certified, 1, 524_288, 4, 1024),
    "candidates 64 x 131072 K=4 D=1024": partial(candidates, 64, 131_072, 4, 1024),
    "scores 128 x 32768 K=32 D=128": partial(scores, 128, 32_768, 32, 128),
    "maxsim 16 x 32768 K=32 L=128 D=128": partial(maxsim, 16, 32_768, 32, 128, 128),
    "maxsim 4 x 1024 K=1024 L=1024 D=128": partial(maxsim, 4, 1024, 1024, 1024, 128),
    "maxsim gradient 64 K=32 L=300 D=128": partial(maxsim_gradient, 64, 32, 300, 128),
    "maxsim candidates 64 x 16384 K=32 L=300": partial(reranked, 64, 16_384, 32, 300, 128),
    "scores 512 x 32768 K=8 D=512": partial(scores, 512, 32_768, 8, 512),
    "scores 256 x 32768 K=16 D=256": partial(scores, 256, 32_768, 16, 256),
}
