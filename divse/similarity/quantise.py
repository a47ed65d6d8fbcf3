r"""int8 codes of embeddings and how far they may be wrong: the specification, in plain torch.

An element x (D,) becomes codes q in [-127, 127], a scale s and a residual r:

    s = max |x_d| / 127        in fp32
    q = round(x / s)           half to even; 0 where s = 0
    r >= |x - s q|             never too small: the exact norm, rounded up to fp32

A query element is stored in two parts, the second being the codes of what the first leaves:

    x = s1 q1 + s2 q2 + rest,   r1 >= |x - s1 q1|,   r2 >= |x - s1 q1 - s2 q2|

Error of a cosine. With a query element x, a gallery element y of codes (t, u), residual p, and
x' the codes' value of x (one part or both) with residual r:

    <x, y> - <x', u t> = <x - x', y> + <x', y - u t>,   so
    |<x, y> - <x', u t>| <= r |y| + |x'| p <= r unit_bound + (|x| + r) p

`unit_bound` is what `quantise` lets the norm of an element be: unit vectors rounded to fp16 or
bf16 stay below it. <x', u t> is u (s1 <q1, t> + s2 <q2, t>): sums of integers, which are exact, and
a few roundings in fp32 (`divse.similarity.certified` has the slack). All similarities but
`mp` are monotone in every cosine, so a similarity of cosines that are raised, each by its own
error, is an upper bound.

Exactness of r. x, s and q fit in 32 bits together, so s q and x - s q are exact in fp64; only the
sum of squares and its root are rounded there, by far less than the last step up to fp32 allows for.
Other implementations return the same codes and scales, and residuals that may differ from these in
the last place, as long as they are not below the exact norm.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from divse.sets import lengths_mask

LARGEST_CODE = 127
UNIT_BOUND = 1.0 + 2.0**-7


class Int8Sets(NamedTuple):
    """Codes (N, L, D) int8, scales (N, L) and residuals (N, L) fp32; all zero in the padding."""

    codes: Tensor
    scales: Tensor
    residuals: Tensor


class TwoParts(NamedTuple):
    """Query elements in two parts: codes (B, K, D) int8; scales, norms and residuals (B, K) fp32.

    `rest1` bounds what the first part leaves of an element, `rest` what both leave.
    """

    codes1: Tensor
    scales1: Tensor
    rest1: Tensor
    codes2: Tensor
    scales2: Tensor
    rest: Tensor


def quantise(values: Tensor, lengths: Tensor | None = None) -> Int8Sets:
    """Return the codes of unit vectors ``values`` (N, L, D) of any float type.

    ``lengths`` (N,) says how many elements are real. Raises ValueError for an element that is not
    finite or longer than `UNIT_BOUND`: the bounds would not hold for it.
    """
    wide = _real(values, lengths)
    check_norms(wide)
    codes, scales = _nearest(wide)
    return Int8Sets(codes, scales, _norm_up(_left(wide.double(), codes, scales)))


def two_parts(queries: Tensor, lengths: Tensor | None = None) -> TwoParts:
    """Return the codes of query elements (B, K, D) in two parts; any finite vectors."""
    wide = _real(queries, lengths)
    if not bool(torch.isfinite(wide).all()):
        raise ValueError("queries: an element is not finite; leave it out or shorten its set")
    codes1, scales1 = _nearest(wide)
    left = _left(wide.double(), codes1, scales1)
    codes2, scales2 = _nearest(left.float())
    rest = _norm_up(_left(left, codes2, scales2))
    return TwoParts(codes1, scales1, _norm_up(left), codes2, scales2, rest)


def dequantise(sets: Int8Sets) -> Tensor:
    """Return the vectors (N, L, D) fp32 that the codes stand for."""
    return sets.codes.float() * sets.scales[..., None]


def check_norms(values: Tensor) -> None:
    """Raise ValueError naming the first element of ``values`` (N, L, D) longer than UNIT_BOUND."""
    norms = values.float().norm(dim=-1)
    bad = ~(norms <= UNIT_BOUND)  # NaN is bad too
    if bool(bad.any()):
        row, element = (int(i) for i in bad.nonzero()[0])
        raise ValueError(
            f"int8 codes: element {element} of set {row} has norm {float(norms[row, element]):g}, "
            "expected unit vectors; normalise with EmbeddingSets.of"
        )


def _real(values: Tensor, lengths: Tensor | None) -> Tensor:
    """The vectors in fp32, zero in the padding."""
    mask = lengths_mask(lengths, values.shape[1])
    wide = values.float()
    return wide if mask is None else torch.where(mask[..., None], wide, 0.0)


def _nearest(values: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (..., D) int8 and scales (...) fp32."""
    scales = values.abs().amax(-1) / LARGEST_CODE
    steps = values / torch.where(scales == 0, 1.0, scales)[..., None]
    # A subnormal scale is so coarse that a quotient may leave the range.
    codes = torch.where(scales[..., None] == 0, 0.0, steps.round())
    return codes.clamp(-LARGEST_CODE, LARGEST_CODE).to(torch.int8), scales


def _left(values: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """What the codes leave of ``values`` (..., D) fp64, exactly."""
    return values - scales.double()[..., None] * codes.double()


def _norm_up(values: Tensor) -> Tensor:
    """Norms (...) fp32 of ``values`` (..., D) fp64, never below the exact ones."""
    exact = values.square().sum(-1).sqrt() * (1 + 2.0**-36)  # more than its own rounding
    norms = exact.float()
    above = torch.nextafter(norms, torch.full_like(norms, torch.inf))
    return torch.where(norms.double() < exact, above, norms)
