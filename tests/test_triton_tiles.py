"""The device functions of the kernels on their own, and the choice of tiles."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("divse_kernels")

import triton
import triton.language as tl

from divse_kernels import tuning
from divse_kernels.problem import Problem, padded
from divse_kernels.tiles import exp2_by_polynomial, log2, product, reciprocal, row_order

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ARCHITECTURES = ["interpreter", "ampere", "ada", "hopper", "blackwell"]


@triton.jit
def _evaluate(x_ptr, exp2_ptr, log2_ptr, reciprocal_ptr, N: tl.constexpr):
    n = tl.program_id(0) * N + tl.arange(0, N)
    x = tl.load(x_ptr + n)
    tl.store(exp2_ptr + n, exp2_by_polynomial(x))
    tl.store(log2_ptr + n, log2(tl.abs(x)))
    tl.store(reciprocal_ptr + n, reciprocal(x))


def evaluate(x):
    results = [torch.empty_like(x) for _ in range(3)]
    _evaluate[(len(x) // 1024,)](x, *results, 1024)
    return [r.double() for r in results]


def test_functions_are_as_exact_as_special_functions():
    x = torch.linspace(-125.9, 127.4, 1 << 16, device=DEVICE)
    exponential, logarithm, inverse = evaluate(x)
    exact = x.double()
    assert (exponential / exact.exp2() - 1).abs().max() < 2**-22
    assert (logarithm - exact.abs().log2()).abs().max() < 2**-22 * 8
    assert (inverse * exact - 1).abs().max() < 2**-22


def test_exp2_past_its_range_is_infinite_and_never_a_wrong_number():
    x = torch.full((1024,), 127.9, device=DEVICE)
    x[:4] = torch.tensor([128.0, 200.0, 1e30, torch.inf])
    assert evaluate(x)[0][:4].isinf().all()


@triton.jit
def _multiply_middle(x_ptr, out_ptr):
    i = tl.arange(0, 16)
    x = tl.reshape(tl.load(x_ptr + i), (2, 2, 4))
    tl.store(out_ptr + tl.arange(0, 8), tl.reshape(product(x, 1), (8,)))


def test_product_over_an_axis():
    x = torch.arange(1.0, 17.0, device=DEVICE)
    out = torch.empty(8, device=DEVICE)
    _multiply_middle[(1,)](x, out)
    assert torch.equal(out, x.view(2, 2, 4).prod(1).flatten())


@triton.jit
def _rows(
    out_ptr,
    M: tl.constexpr,
    K2: tl.constexpr,
    OUTER: tl.constexpr,
    PAIR: tl.constexpr,
    LANE: tl.constexpr,
):
    sets, elements = row_order(M, OUTER, PAIR, LANE)
    tl.store(out_ptr + sets * K2 + elements, tl.arange(0, M))


@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize("k2", [1, 2, 4, 8, 16, 32])
def test_row_order_holds_every_element_once(k2, repeats):
    tile = tuning.Tile(64, 64, 64, 2, 1, repeats=repeats)
    order = tile.row_order(k2)
    assert order["OUTER"] * order["PAIR"] * order["LANE"] == k2
    rows = torch.full((64,), -1, dtype=torch.int32, device=DEVICE)
    _rows[(1,)](rows, 64, k2, **order)
    assert torch.equal(rows.sort().values, torch.arange(64, dtype=torch.int32, device=DEVICE))


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("alpha", [16.0, None])
def test_every_problem_has_a_tile_that_holds_whole_sets(arch, dtype, alpha):
    for row_size in (1, 3, 32):
        for column_size in (1, 4, 32):
            for row_sets, column_sets in ((1, 1), (100, 1), (10_000, 40), (10_000, 10_000)):
                problem = Problem(
                    arch, dtype, 256, row_sets, row_size, column_sets, column_size, alpha
                )
                for name in ("forward", "weights", "lse_weights", "mining", "lse", "pairs"):
                    tile = getattr(tuning, f"{name}_tile")(problem)
                    assert tile.block_m >= padded(row_size)
                    assert tile.block_n >= max(16, padded(column_size))


def test_all_tuning_is_in_one_file():
    """Other files take warps, stages and groups of tiles from there."""
    sources = Path(tuning.__file__).parent.glob("*.py")
    fixed = re.compile(r"""(num_warps|num_stages|"?GROUP"?)["']?[=:] *(\d|max\()""")
    found = {p.name for p in sources if fixed.search(p.read_text())}
    assert found == {"tuning.py"}


@pytest.mark.parametrize(
    ("alpha", "factors"),
    [(0.1, 4), (18.0, 4), (18.1, 2), (40.0, 2), (41.0, 1), (80.0, 1), (81.0, 0)],
)
def test_alpha_bounds_the_sums_that_share_a_logarithm(alpha, factors):
    """At the limit a product of the largest and of the smallest sums must stay in float32."""
    problem = Problem("hopper", torch.bfloat16, 256, 1, 32, 1, 32, alpha)
    assert problem.factors == factors
    assert dataclasses.replace(problem, alpha=None).factors == 0
    if factors:
        largest = factors * (alpha * 1.01 + torch.tensor(32.0).log())
        assert largest < torch.tensor(torch.finfo(torch.float32).max).log()
        assert -factors * alpha * 1.01 > torch.tensor(torch.finfo(torch.float32).tiny).log()
