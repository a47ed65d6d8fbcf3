"""int8 codes of elements with bounds of what they leave, as divse/similarity/quantise.py says:

    s = max |x| / 127,    q = round(x / s),    r >= |x - s q|

A gallery element is one part, a query element two: the second is the codes of what the first left.
Norms are taken in float64, where s q and x - s q are exact, and rounded up.
"""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from divse_kernels.launch import INTERPRETED, launches, on_device
from divse_kernels.ops import check_lengths
from divse_kernels.tiles import set_lengths
from divse_kernels.tuning import FEW_WARPS

#: What the norm of a gallery element may be: unit vectors rounded to 16 bits stay below it.
UNIT_BOUND = 1.0 + 2.0**-7
UNIT_ROUNDOFF = 2.0**-24
ROUNDER = tl.constexpr(12582912.0)  # 1.5 * 2 ** 23: adding it leaves the nearest integer


@triton.jit
def nearest(x):
    """Codes `[ROWS, D]`, still in float32, and scales `[ROWS]` of elements in float32."""
    scales = tl.div_rn(tl.max(tl.abs(x), axis=1), tl.full((x.shape[0],), 127.0, tl.float32))
    divisors = tl.where(scales == 0.0, 1.0, scales)[:, None] + tl.zeros_like(x)
    codes = (tl.div_rn(x, divisors) + ROUNDER) - ROUNDER
    # A subnormal scale is so coarse that a quotient may leave the range.
    codes = tl.minimum(tl.maximum(codes, -127.0), 127.0)
    return tl.where((scales == 0.0)[:, None], 0.0, codes), scales


@triton.jit
def left_by(x, codes, scales):
    """What the codes leave of elements in float64, exactly."""
    return x - scales.to(tl.float64)[:, None] * codes.to(tl.float64)


@triton.jit
def norms_up(x):
    """Norms in float32 of elements `[ROWS, D]` in float64, never below the exact ones."""
    exact = tl.sqrt(tl.sum(x * x, axis=1)) * (1.0 + 1.4551915228366852e-11)  # 2 ** -36
    norms = exact.to(tl.float32)
    above = (norms.to(tl.int32, bitcast=True) + 1).to(tl.float32, bitcast=True)
    return tl.where(norms.to(tl.float64) < exact, above, norms)


@triton.jit(do_not_specialize=["ROWS"])
def encode_elements(
    value_ptr,  # [SETS, K, D]
    lengths_ptr,  # [SETS] int64, or None
    norm_ptr,  # [ROWS] float32
    code_ptr,  # [PARTS, ROWS, D] int8
    scale_ptr,  # [PARTS, ROWS] float32
    rest_ptr,  # [PARTS, ROWS] float32: norm of what this part and those before leave
    ROWS,  # SETS * K
    D,
    stride_set,
    stride_element,
    K: tl.constexpr,
    PARTS: tl.constexpr,
    RAGGED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,  # at least D
):
    """Codes of BLOCK_R elements; all is zero in the padding."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = row < ROWS
    sets = tl.minimum(row, ROWS - 1) // K
    element = row % K
    inside &= element < set_lengths(lengths_ptr, sets, K, RAGGED)
    dims = tl.arange(0, BLOCK_D)
    values = value_ptr + (sets * stride_set + element * stride_element)[:, None] + dims[None, :]
    mask = inside[:, None] & (dims < D)[None, :]
    left = tl.load(values, mask=mask, other=0.0).to(tl.float64)
    tl.store(norm_ptr + row, norms_up(left), mask=row < ROWS)
    for part in tl.static_range(PARTS):
        codes, scales = nearest(left.to(tl.float32))
        left = left_by(left, codes, scales)
        at = row + part * tl.cast(ROWS, tl.int64)
        stored = (row < ROWS)[:, None] & (dims < D)[None, :]
        tl.store(code_ptr + at[:, None] * D + dims[None, :], codes.to(tl.int8), mask=stored)
        tl.store(scale_ptr + at, scales, mask=row < ROWS)
        tl.store(rest_ptr + at, norms_up(left), mask=row < ROWS)


def encode(
    values: Tensor, lengths: Tensor | None, parts: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes (parts, N, L, D), scales and rests (parts, N, L), norms (N, L) of sets (N, L, D)."""
    (count, size, dims), device = values.shape, values.device
    codes = torch.empty(parts, *values.shape, dtype=torch.int8, device=device)
    scales, rests = torch.empty(2, parts, count, size, dtype=torch.float32, device=device)
    norms = torch.empty(count, size, dtype=torch.float32, device=device)
    if codes.numel() == 0:
        return codes, scales, rests, norms
    if values.stride(2) != 1:
        values = values.contiguous()
    block_d = triton.next_power_of_2(dims)
    block_r = max(1, (1 << (16 if INTERPRETED else 11)) // block_d)
    launches["encode_elements"] += 1
    with on_device(device):
        encode_elements[(triton.cdiv(count * size, block_r),)](
            values,
            None if lengths is None else lengths.to(torch.int64).contiguous(),
            norms,
            codes,
            scales,
            rests,
            count * size,
            dims,
            *values.stride()[:2],
            K=size,
            PARTS=parts,
            RAGGED=lengths is not None,
            BLOCK_R=block_r,
            BLOCK_D=block_d,
            num_warps=FEW_WARPS,
            enable_fp_fusion=True,
        )
    return codes, scales, rests, norms


def quantise(values: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (N, L, D) int8, scales and residuals (N, L) float32 of unit vectors (N, L, D).

    All are zero in the padding. Raises ValueError where an element is no unit vector, for which
    bounds would not hold; this waits for the device.
    """
    check_lengths("lengths", values, lengths)
    codes, scales, rests, norms = encode(values, lengths, parts=1)
    wrong = ~(norms <= UNIT_BOUND)
    if wrong.any():
        row, element = (int(i) for i in wrong.nonzero()[0])
        raise ValueError(
            f"element {element} of set {row} has norm {float(norms[row, element]):g}, "
            "expected unit vectors: normalise them, or leave the set out"
        )
    return codes[0], scales[0], rests[0]


@dataclass(frozen=True)
class CodedQueries:
    """Queries (B, K, D) in two parts, and what bounds of their cosines are made of.

    `parts` (2, B, K, D) int8. `terms` (5, B, K): both scales, reach, offset, ceiling; int8_tile.py
    says what for.
    """

    parts: Tensor
    terms: Tensor
    lengths: Tensor | None

    @classmethod
    def of(
        cls, queries: Tensor, lengths: Tensor | None, gallery_size: int, alpha: float
    ) -> "CodedQueries":
        """Encode queries for a gallery of sets of up to `gallery_size` elements."""
        parts, scales, rests, norms = encode(queries, lengths, parts=2)
        slack = rounding(norms, queries.shape[2], queries.shape[1] + gallery_size, alpha)
        reach, offset = norms + rests[1], rests[1] * UNIT_BOUND + slack
        terms = torch.stack([*scales, reach, offset, norms * UNIT_BOUND + slack])
        return cls(parts, terms, None if lengths is None else lengths.to(torch.int64).contiguous())


def rounding(norms: Tensor, dims: int, elements: int, alpha: float) -> Tensor:
    """What rounding may cost a cosine: of the bound, and of the exact score that it is held to.

    Inner products of D terms err by at most (D + 2) v |x| |y|, in any order; twice that where
    tensor cores truncate. Exponentials, logarithms and means of the `elements` of both sets err by
    some v (K + L) of a score's size, which for Smooth-Chamfer grows by log(K L) / alpha (infinite
    for the others). Raising all cosines raises a score by as much, so this is added to cosines too.
    """
    sizes = norms * UNIT_BOUND
    smooth = (1.0 + 2.0 * math.log(elements / 2)) / alpha
    return UNIT_ROUNDOFF * (4.0 * (dims + 8) * sizes + 32.0 * (elements + 8) * (sizes + smooth))
