"""Between a scan by bounds and the merge: what it appended, as candidates, and their exact scores.

Two small kernels, so that a part of the gallery costs few launches: parts are small at first.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from divse_kernels.best import LOW_BITS, Best, monotone
from divse_kernels.launch import launches, on_device
from divse_kernels.tuning import FEW_WARPS, row_warps

BLOCK = 1024


@triton.jit(do_not_specialize=["first"])
def list_appended(
    keys_ptr,  # [B, WIDTH] int64, of `Best`
    counts_ptr,  # [B] int32
    kept_ptr,  # [B] int32
    candidate_ptr,  # [B, WIDTH] int64
    number_ptr,  # [B] int64
    first,  # position of the first set of the part
    WIDTH: tl.constexpr,
):
    """Sets of the part that a query's row got since the last merge, -1 in other slots."""
    query = tl.program_id(0).to(tl.int64)
    kept = tl.load(kept_ptr + query)
    count = tl.minimum(tl.load(counts_ptr + query), WIDTH)
    slots = tl.arange(0, WIDTH)
    new = (slots >= kept) & (slots < count)
    keys = tl.load(keys_ptr + query * WIDTH + slots, mask=new, other=0)
    positions = (keys & LOW_BITS) ^ LOW_BITS
    tl.store(candidate_ptr + query * WIDTH + slots, tl.where(new, positions - first, -1))
    tl.store(number_ptr + query, tl.load(number_ptr + query) + (count - kept))


@triton.jit(do_not_specialize=["first"])
def put_scores(
    keys_ptr,  # [SLOTS] int64, all rows of `Best`
    candidate_ptr,  # [SLOTS] int64
    score_ptr,  # [SLOTS] float32
    first,
    SLOTS,
    BLOCK: tl.constexpr,
):
    """Replace the bounds in the keys of candidates by their scores."""
    slots = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    candidates = tl.load(candidate_ptr + slots, mask=slots < SLOTS, other=-1)
    scores = tl.load(score_ptr + slots, mask=candidates >= 0, other=0.0)
    keys = (monotone(scores).to(tl.int64) << 32) | ((candidates + first) ^ LOW_BITS)
    tl.store(keys_ptr + slots, keys, mask=candidates >= 0)


def appended(best: Best, first: int, numbers: Tensor) -> Tensor:
    """Candidates (B, WIDTH) in the part at position `first`; counted in `numbers` (B,) int64."""
    candidates = torch.empty_like(best.keys)
    launches["list_appended"] += 1
    with on_device(best.keys.device):
        list_appended[(best.queries,)](
            best.keys,
            best.counts,
            best.kept,
            candidates,
            numbers,
            first,
            WIDTH=best.width,
            num_warps=row_warps(best.width, 8),
            enable_fp_fusion=True,
        )
    return candidates


def rescore(best: Best, candidates: Tensor, scores: Tensor, first: int) -> None:
    """Give the candidates that `appended` found their exact scores (B, WIDTH)."""
    launches["put_scores"] += 1
    with on_device(best.keys.device):
        put_scores[(triton.cdiv(candidates.numel(), BLOCK),)](
            best.keys,
            candidates,
            scores,
            first,
            candidates.numel(),
            BLOCK=BLOCK,
            num_warps=FEW_WARPS,
            enable_fp_fusion=True,
        )
