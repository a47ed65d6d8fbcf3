"""A scan of a part of the gallery where sets are long: a block of scores, then the few that matter.

A score of long sets takes thousands of products, so writing it costs nothing; what is in memory of
scores is one bounded block, which a second kernel appends from as search_scan.py does from its
tiles.
"""

import triton
import triton.language as tl
from torch import Tensor

from divse_kernels.best import Best, append, wanted_sets
from divse_kernels.launch import Side, launches, on_device
from divse_kernels.long_sets import scores
from divse_kernels.tuning import FEW_WARPS

SCORES = 4 << 20  # in memory at a time
SETS, QUERIES = 64, 16  # of one program that appends


@triton.jit(do_not_specialize=["GALLERY_SETS", "QUERY_SETS", "first_position"])
def append_scores(
    score_ptr,  # [QUERY_SETS, GALLERY_SETS] float32
    keys_ptr,  # [QUERY_SETS, WIDTH] and the other arrays of `append`
    counts_ptr,
    thresholds_ptr,
    state_ptr,
    excluded_ptr,  # bitmap over positions, or None
    GALLERY_SETS,
    QUERY_SETS,
    first_position,  # of the first of these gallery sets
    WIDTH,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Append what beats the thresholds among a tile of scores; in plain torch, if nothing is kept:

    scores.masked_fill(excluded, -inf).topk(topk, 1)
    """
    queries = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    sets = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = sets < GALLERY_SETS
    positions = sets.to(tl.int64) + first_position
    wanted = wanted_sets(excluded_ptr, positions, inside)
    if tl.load(state_ptr) == 0:  # what follows a row that was too short is scanned again
        offsets = queries.to(tl.int64)[None, :] * GALLERY_SETS + sets[:, None]
        mask = inside[:, None] & (queries < QUERY_SETS)[None, :]
        found = tl.load(score_ptr + offsets, mask=mask, other=0.0)
        append(
            keys_ptr,
            counts_ptr,
            thresholds_ptr,
            state_ptr,
            found,
            wanted,
            positions,
            queries,
            QUERY_SETS,
            WIDTH,
        )


def scan_long_sets(
    queries: Side,
    gallery: Side,
    how: tuple[float, bool, str],  # alpha, log_mean, similarity
    excluded: Tensor | None,
    first: int,
    best: Best,
    gallery_sets: int,
) -> None:
    """Append a part of the gallery whose first set is at position `first`, as `ExactScan` does."""
    step = max(1, SCORES // queries.count)
    for start in range(0, gallery.count, step):
        part = gallery[start : start + step]
        found = scores(queries, part, *how, tile_sets=gallery_sets)
        launches["append_scores"] += 1
        with on_device(found.device):
            append_scores[(triton.cdiv(part.count, SETS), triton.cdiv(queries.count, QUERIES))](
                found,
                *best.pointers,
                excluded,
                part.count,
                queries.count,
                first + start,
                best.width,
                BLOCK_M=SETS,
                BLOCK_N=QUERIES,
                num_warps=FEW_WARPS,
            )
