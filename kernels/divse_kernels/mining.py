"""The best sets of another group, for every row set and every column set, in one pass.

The score matrix is never stored: memory holds the inputs and TOPN numbers a set. A candidate is one
64-bit key, its score's bits made monotone above its reversed position, so that the largest key is
the best score and, among equals, the lowest position. A set's slots are a cascade: a key goes into
the first slot by an atomic maximum, what it displaces (or the key itself) goes on to the next. Each
slot passes on all keys but the largest it saw, so in the end the slots hold the best TOPN in order,
whatever the order of arrival: the result repeats bit for bit.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from divse_kernels import score_tile
from divse_kernels.best import LOW_BITS, monotone
from divse_kernels.launch import Side, launches, on_device, problem
from divse_kernels.problem import SMOOTH_CHAMFER, Problem
from divse_kernels.score_tile import tile_scores
from divse_kernels.smooth_chamfer_forward import tile_of_program
from divse_kernels.tuning import ROW_GROUP, Tile, mining_tile

#: Below the key of every finite score.
EMPTY = tl.constexpr(-(0x7FFFFFFF << 32))
NOWHERE = tl.constexpr(0x7FFFFFFF)


@triton.jit
def packed(scores, positions):
    """Keys in the order of scores, equal ones by position, lowest first."""
    return (monotone(scores).to(tl.int64) << 32) | (LOW_BITS - positions.to(tl.int64))


@triton.jit
def insert(slot_ptrs, keys, wanted, TOPN: tl.constexpr):
    """Let keys, where wanted, take their places among the slots that begin at each pointer."""
    for slot in range(TOPN):
        displaced = tl.atomic_max(slot_ptrs + slot, keys, mask=wanted, sem="relaxed")
        keys = tl.minimum(keys, displaced)
        wanted = wanted & (keys > EMPTY)


@triton.jit
def insert_best(
    scores,  # [M, N], -inf where a pair does not count
    positions,  # along AXIS
    slot_ptrs,  # along the other axis: where the slots of a set begin
    inside,  # likewise: sets that exist
    AXIS: tl.constexpr,
    TOPN: tl.constexpr,
):
    """Insert the best scores over AXIS, one after the other while any set still has use for them.

    The last slot only ever grows, so a key below an old value of it is hopeless too.
    """
    along = tl.expand_dims(positions, 1 - AXIS)
    guard = tl.load(slot_ptrs + (TOPN - 1), mask=inside, other=0, cache_modifier=".cg")
    level = tl.full(inside.shape, float("inf"), tl.float32)
    last = tl.full(inside.shape, -1, tl.int32)
    rounds = tl.full((), TOPN, tl.int32)
    while rounds > 0:
        left = scores
        if TOPN > 1:
            limit = tl.expand_dims(level, AXIS)
            after = (scores == limit) & (along > tl.expand_dims(last, AXIS))
            left = tl.where((scores < limit) | after, scores, float("-inf"))
        level = tl.max(left, axis=AXIS)
        best = left == tl.expand_dims(level, AXIS)
        last = tl.min(tl.where(best, along, NOWHERE), axis=AXIS)
        keys = packed(level, last)
        wanted = inside & (level > float("-inf")) & (keys > guard)
        insert(slot_ptrs, keys, wanted, TOPN)
        rounds = tl.where(tl.max(wanted.to(tl.int32), axis=0) > 0, rounds - 1, 0)


@triton.jit
def mine_hardest_negatives(
    row_ptr,  # [ROW_SETS, K, D]
    column_ptr,  # [COLUMN_SETS, L, D]
    row_groups_ptr,  # [ROW_SETS] int64
    column_groups_ptr,  # [COLUMN_SETS] int64
    row_slots_ptr,  # [ROW_SETS, TOPN] int64, EMPTY at first
    column_slots_ptr,  # [COLUMN_SETS, TOPN] int64, EMPTY at first
    row_lengths_ptr,  # [ROW_SETS] int64, or None
    column_lengths_ptr,  # [COLUMN_SETS] int64, or None
    alpha,  # float, or a pointer to one
    D,
    ROW_SETS,
    COLUMN_SETS,
    stride_row_set,  # strides of the inputs in units of 8 values
    stride_row_element,
    stride_column_set,
    stride_column_element,
    TOPN: tl.constexpr,
    K: tl.constexpr,
    L: tl.constexpr,
    K2: tl.constexpr,
    L2: tl.constexpr,
    FACTORS: tl.constexpr,
    LOG_MEAN: tl.constexpr,
    ROW_RAGGED: tl.constexpr,
    COLUMN_RAGGED: tl.constexpr,
    ALPHA_ON_DEVICE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EVEN_D: tl.constexpr,
    GROUP: tl.constexpr,
    POLYNOMIAL: tl.constexpr,
    OUTER: tl.constexpr,
    PAIR: tl.constexpr,
    LANE: tl.constexpr,
    SIMILARITY: tl.constexpr,
    QUERY_ROWS: tl.constexpr,
):
    """Candidates of one tile of scores, `[M_SETS, N_SETS]`, for its rows and for its columns."""
    M_SETS: tl.constexpr = BLOCK_M // K2
    N_SETS: tl.constexpr = BLOCK_N // L2
    tile_m, tile_n = tile_of_program(tl.cdiv(ROW_SETS, M_SETS), tl.cdiv(COLUMN_SETS, N_SETS), GROUP)
    scores = tile_scores(
        row_ptr,
        None,
        row_lengths_ptr,
        tile_m * M_SETS,
        ROW_SETS,
        stride_row_set,
        stride_row_element,
        column_ptr,
        None,
        column_lengths_ptr,
        tile_n * N_SETS,
        COLUMN_SETS,
        stride_column_set,
        stride_column_element,
        alpha,
        D,
        K,
        L,
        K2,
        L2,
        FACTORS,
        LOG_MEAN,
        ROW_RAGGED,
        COLUMN_RAGGED,
        ALPHA_ON_DEVICE,
        BLOCK_M,
        BLOCK_N,
        BLOCK_D,
        EVEN_D,
        POLYNOMIAL,
        OUTER,
        PAIR,
        LANE,
        SIMILARITY,
        QUERY_ROWS,
    )
    m = tile_m * M_SETS + tl.arange(0, M_SETS)
    n = tile_n * N_SETS + tl.arange(0, N_SETS)
    row_exists = m < ROW_SETS
    column_exists = n < COLUMN_SETS
    row_groups = tl.load(row_groups_ptr + m, mask=row_exists, other=0)
    column_groups = tl.load(column_groups_ptr + n, mask=column_exists, other=0)
    negative = row_groups[:, None] != column_groups[None, :]
    negative = negative & row_exists[:, None] & column_exists[None, :]
    scores = tl.where(negative & (scores == scores), scores, float("-inf"))  # no NaN
    row_slots = row_slots_ptr + m.to(tl.int64) * TOPN
    column_slots = column_slots_ptr + n.to(tl.int64) * TOPN
    insert_best(scores, n, row_slots, row_exists, 1, TOPN)
    insert_best(scores, m, column_slots, column_exists, 0, TOPN)


def constants(task: Problem, tile: Tile, log_mean: bool, topn: int) -> dict[str, int | bool | str]:
    """Compile-time arguments of the kernel."""
    return score_tile.constants(task, tile, log_mean) | ROW_GROUP | {"TOPN": topn}


def _positions(slots: Tensor) -> Tensor:
    """Positions from keys, -1 where a slot is empty."""
    low = LOW_BITS.value
    return torch.where(slots == EMPTY.value, -1, low - (slots & low))


def mine(
    queries: Side,
    gallery: Side,
    query_groups: Tensor,
    gallery_groups: Tensor,
    topn: int,
    alpha: float | Tensor,
    log_mean: bool,
    similarity: str = SMOOTH_CHAMFER,
) -> tuple[Tensor, Tensor]:
    """Launch the kernel: positions (B, topn) in the gallery and (N, topn) among the queries.

    Groups are (B,) and (N,) int64: sets of one group are not each other's negatives. Best first,
    ties by position; -1 where there is none.
    """
    device = queries.values.device
    sides = ((queries, query_groups), (gallery, gallery_groups))
    slots = [
        torch.full((side.count, topn), EMPTY.value, dtype=torch.int64, device=device)
        for side, _ in sides
    ]
    if queries.count == 0 or gallery.count == 0:
        return _positions(slots[0]), _positions(slots[1])
    # Tiles are tall, so the larger side goes along the rows.
    task, order = problem(queries, gallery, alpha, similarity), (0, 1)
    if task.rows < task.columns:
        task, order = problem(gallery, queries, alpha, similarity, query_rows=False), (1, 0)
    (rows, row_groups), (columns, column_groups) = (sides[i] for i in order)
    tile = mining_tile(task)
    programs = triton.cdiv(task.rows, tile.block_m) * triton.cdiv(task.columns, tile.block_n)
    launches["mine_hardest_negatives"] += 1
    with on_device(device):
        mine_hardest_negatives[(programs,)](
            rows.values,
            columns.values,
            row_groups.contiguous(),
            column_groups.contiguous(),
            *(slots[i] for i in order),
            rows.lengths,
            columns.lengths,
            alpha,
            task.dims,
            task.row_sets,
            task.column_sets,
            *rows.strides,
            *columns.strides,
            **constants(task, tile, log_mean, topn),
            **tile.options,
        )
    return _positions(slots[0]), _positions(slots[1])
