"""The specification itself: against loops, golden numbers, gradcheck, and its properties."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import divse
from divse.sets import normalize
from divse.similarity import reference

GOLDEN = Path(__file__).parent / "golden" / "published_code.npz"
ALPHAS = (0.1, 1, 16, 18, 19, 40, 41, 80, 81, 200, 1000)


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(*shape, generator=generator, dtype=torch.float64))


def loops(x, y, name, alpha=16.0, log_mean=False, scale=1.0, shift=0.0, reduction="sum"):
    """One pair of sets, by the formulas of reference.py, in Python floats."""
    c = [[sum(a * b for a, b in zip(u, v, strict=True)) for v in y] for u in x]
    ct = [list(column) for column in zip(*c, strict=True)]

    def lse(row):
        total = sum(math.exp(alpha * (v - max(row))) for v in row)
        return alpha * max(row) + math.log(total / (len(row) if log_mean else 1))

    def mean(values):
        values = list(values)
        return sum(values) / len(values)

    if name == "smooth_chamfer":
        return (mean(map(lse, c)) + mean(map(lse, ct))) / (2 * alpha)
    if name == "chamfer":
        return (mean(map(max, c)) + mean(map(max, ct))) / 2
    if name == "mil":
        return max(map(max, c))
    if name == "mp":
        return mean(1 / (1 + math.exp(-(scale * v + shift))) for row in c for v in row)
    return sum(map(max, c)) / (len(c) if reduction == "mean" else 1)


CASES = [
    ("smooth_chamfer", {}),
    ("smooth_chamfer", {"log_mean": True, "alpha": 3.0}),
    ("chamfer", {}),
    ("mil", {}),
    ("mp", {"scale": 5.0, "shift": -1.5}),
    ("maxsim", {}),
    ("maxsim", {"reduction": "mean"}),
]


@pytest.mark.parametrize(("name", "parameters"), CASES)
@pytest.mark.parametrize("ragged", [False, True])
def test_against_loops(name, parameters, ragged):
    q, g = unit(3, 4, 6), unit(5, 3, 6, seed=1)
    ql = torch.tensor([1, 4, 2]) if ragged else None
    gl = torch.tensor([3, 1, 2, 3, 1]) if ragged else None
    got = divse.score(
        q, g, name, query_lengths=ql, gallery_lengths=gl, impl="reference", **parameters
    )
    for b in range(3):
        for n in range(5):
            x = q[b, : ql[b] if ragged else 4].tolist()
            y = g[n, : gl[n] if ragged else 3].tolist()
            assert got[b, n].item() == pytest.approx(loops(x, y, name, **parameters), abs=1e-12)


@pytest.mark.parametrize("name", ["smooth_chamfer", "chamfer", "mil", "mp"])
def test_published_code_gives_the_same(name):
    golden = np.load(GOLDEN)
    got = divse.score(golden["sim_queries"], golden["sim_gallery"], name, impl="reference")
    np.testing.assert_allclose(got, golden[f"sim_{name}"], atol=1e-6)


@pytest.mark.parametrize(("name", "parameters"), CASES)
def test_gradcheck(name, parameters):
    q = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    g = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([1, 2, 2])

    def score(q, g):
        return divse.score(q, g, name, gallery_lengths=lengths, impl="reference", **parameters)

    assert torch.autograd.gradcheck(score, (q, g))


def test_alpha_and_the_parameters_of_mp_are_learnable():
    q, g = unit(2, 3, 5), unit(3, 2, 5, seed=1)
    alpha = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda a: divse.score(q, g, alpha=a, impl="reference"), (alpha,)
    )
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    shift = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda a, b: divse.score(q, g, "mp", scale=a, shift=b), (scale, shift)
    )


@pytest.mark.parametrize("alpha", ALPHAS)
def test_bounds_by_chamfer_and_the_limit(alpha):
    q, g = unit(4, 5, 16), unit(6, 3, 16, seed=1)
    soft = divse.score(q, g, alpha=alpha, impl="reference")
    hard = divse.score(q, g, "chamfer")
    slack = (math.log(5) + math.log(3)) / (2 * alpha)
    assert (soft >= hard - 1e-12).all() and (soft <= hard + slack + 1e-12).all()


shapes = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 6))


@settings(deadline=None, max_examples=40)
@given(shape=shapes, alpha=st.floats(0.1, 100), seed=st.integers(0, 99), log_mean=st.booleans())
def test_symmetry_permutation_padding_and_lipschitz(shape, alpha, seed, log_mean):
    k, size, d = shape
    x, y = unit(1, k, d, seed=seed), unit(1, size, d, seed=seed + 100)
    arguments = {"alpha": alpha, "log_mean": log_mean, "unit_norm": False, "impl": "reference"}
    score = divse.score(x, y, **arguments)
    torch.testing.assert_close(divse.score(y, x, **arguments), score)
    torch.testing.assert_close(divse.score(x.flip(1), y.flip(1), **arguments), score)
    padded = torch.cat([x, torch.full((1, 2, d), torch.nan)], 1)
    lengths = torch.tensor([k])
    torch.testing.assert_close(divse.score(padded, y, query_lengths=lengths, **arguments), score)
    moved = x + 0.05 * unit(1, k, d, seed=seed + 200)
    change = ((moved - x) @ y[0].T).abs().max()
    assert (divse.score(moved, y, **arguments) - score).abs().max() <= change + 1e-9


def test_padding_has_no_part_in_gradients():
    q = torch.randn(2, 3, 4, requires_grad=True)
    g = torch.randn(3, 3, 4)
    g[0, 2] = torch.nan
    with torch.no_grad():
        q[1, 1:] = torch.nan
    lengths = {"query_lengths": torch.tensor([3, 1]), "gallery_lengths": torch.tensor([2, 3, 3])}
    divse.score(q, g, impl="reference", **lengths).sum().backward()
    assert torch.isfinite(q.grad).all()
    assert (q.grad[1, 1:] == 0).all()


def test_gradient_by_the_cosines_sums_to_one():
    c = (unit(1, 4, 8)[0] @ unit(1, 3, 8, seed=1)[0].T).requires_grad_()
    reference.smooth_chamfer(c).backward()
    assert (c.grad >= 0).all()
    assert c.grad.sum().item() == pytest.approx(1, abs=1e-12)


def test_log_mean_takes_away_the_advantage_of_larger_sets():
    x = unit(1, 1, 8)
    doubled = x.repeat(1, 6, 1)
    plain = divse.score(doubled, x)
    assert plain.item() > 1.01
    assert divse.score(doubled, x, log_mean=True).item() == pytest.approx(1, abs=1e-6)
