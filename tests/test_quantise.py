"""int8 codes: residuals are never too small, and cosines stay within the bound."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from divse.similarity.quantise import UNIT_BOUND, dequantise, quantise, two_parts

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def unit(n, k, d, seed=0, dtype=torch.float32, spiky=False):
    values = torch.randn(n, k, d, generator=torch.Generator().manual_seed(seed))
    if spiky:  # one large entry: a coarse scale for all others
        values[..., 0] += 30
    return torch.nn.functional.normalize(values, dim=-1).to(dtype)


def exact_square(values):
    return sum(Fraction(float(x)) ** 2 for x in values)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.integers(1, 40), st.sampled_from(DTYPES), st.booleans())
def test_residuals_bound_what_codes_leave(seed, d, dtype, spiky):
    values = unit(2, 2, d, seed, dtype, spiky)
    sets = quantise(values)
    assert sets.codes.dtype == torch.int8 and int(sets.codes.abs().max()) <= 127
    flat = (values.reshape(-1, d), sets.codes.reshape(-1, d))
    ends = (sets.scales.reshape(-1), sets.residuals.reshape(-1))
    for x, q, s, r in zip(*flat, *ends, strict=True):
        left = [Fraction(float(a)) - Fraction(float(s)) * int(b) for a, b in zip(x, q, strict=True)]
        assert sum(e**2 for e in left) <= Fraction(float(r)) ** 2
        assert float(r) <= float(s) / 2 * d**0.5 * 1.0001  # and never far too large


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.sampled_from((1, 7, 64)), st.sampled_from(DTYPES), st.booleans())
def test_cosines_stay_within_the_bound(seed, d, dtype, spiky):
    queries, gallery = unit(3, 2, d, seed, spiky=spiky), unit(5, 2, d, seed + 1, dtype)
    q, g = two_parts(queries), quantise(gallery)
    exact = torch.einsum("bkd,nld->bnkl", queries.double(), gallery.double())
    stored = g.codes.double() * g.scales.double()[..., None]
    norms = queries.double().norm(dim=-1)
    first = q.codes1.double() * q.scales1.double()[..., None]
    both = first + q.codes2.double() * q.scales2.double()[..., None]
    for part, rest in ((first, q.rest1.double()), (both, q.rest.double())):
        error = (torch.einsum("bkd,nld->bnkl", part, stored) - exact).abs()
        own = (norms + rest)[:, None, :, None] * g.residuals.double()[None, :, None, :]
        assert bool((error <= rest[:, None, :, None] * UNIT_BOUND + own).all())


def test_the_second_part_is_some_hundred_times_finer():
    parts = two_parts(unit(4, 4, 256))
    assert bool((parts.rest1 < 0.01).all()) and bool((100 * parts.rest < parts.rest1).all())


def test_padding_is_zero_whatever_it_holds():
    values, lengths = unit(3, 4, 9), torch.tensor([1, 4, 2])
    padded = values.clone()
    padded[torch.arange(4) >= lengths[:, None]] = torch.nan
    got, clean = quantise(padded, lengths), quantise(values)
    for mine, full in zip(got, clean, strict=True):
        for n, length in enumerate(lengths):
            assert torch.equal(mine[n, :length], full[n, :length])
            assert not mine[n, length:].any()
    assert bool((dequantise(clean) - values).abs().amax() <= clean.scales.max() * 0.501)


def test_zeros_and_subnormals_are_no_trouble():
    values = torch.zeros(1, 4, 3)
    values[0, 1, 2], values[0, 2, 1], values[0, 3] = 1e-44, 1e-39, 1e-30
    sets = quantise(values)
    left = values.double() - sets.scales.double()[..., None] * sets.codes.double()
    assert bool((left.norm(dim=-1) <= sets.residuals.double()).all())
    assert torch.equal(sets.codes[0, 0], torch.zeros(3, dtype=torch.int8))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1.5])
def test_what_is_no_unit_vector_is_refused(bad):
    values = unit(3, 2, 4)
    values[1, 1, 0] = bad
    with pytest.raises(ValueError, match="element 1 of set 1"):
        quantise(values)
    if bad != 1.5:
        with pytest.raises(ValueError, match="not finite"):
            two_parts(values)
