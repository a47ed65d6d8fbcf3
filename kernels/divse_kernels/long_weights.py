"""Weights, d loss / d cosine, of sets of up to a thousand elements, as weights.py defines them.

A program has a tile of rows (long_tile.py) and walks over each column set twice: first for what
every row needs to know of the whole set (its best cosine and how many elements have it, or a sum of
exponentials), then to write the weights. Both products are the same code on the same operands, so a
best cosine is found again bit for bit. Columns that look for their best row have their row set in
the tile, and know all of it at once: alone they take no first walk.

Where both sides are too long for that, a second launch with the sides exchanged adds the weights of
the other direction to what is there. Of MIL, whose best pair may lie in another part of its set, a
first launch stores the best of each part, and the same kernel then compares with the best of all.
"""

import triton
import triton.language as tl

from divse_kernels.long_reduction import over_sets
from divse_kernels.long_tile import block_cosines, extent, resident_rows
from divse_kernels.tiles import (
    LN_2,
    LOG2_E,
    MASKED,
    bound,
    by_row_set,
    max_row_sets,
    row_order,
    sum_row_sets,
)
from divse_kernels.weights import over_rows


@triton.jit
def extend_statistics(x, top, total, SMOOTH: tl.constexpr, SHIFT: tl.constexpr):
    """Take a block `x` [BLOCK_M, BLOCK_N] into what rows know: two [BLOCK_M].

    Their maximum, and the number of elements that have it or the sum of 2 ** (x - maximum); without
    SHIFT, 0 and the sum of 2 ** x.
    """
    if SMOOTH and not SHIFT:
        return top, total + tl.sum(tl.exp2(x), axis=1)
    else:
        higher = tl.maximum(top, tl.max(x, axis=1))
        if SMOOTH:
            total = total * tl.exp2(top - higher)
            return higher, total + tl.sum(tl.exp2(x - higher[:, None]), axis=1)
        else:
            total = tl.where(higher > top, 0.0, total)
            return higher, total + tl.sum((x == higher[:, None]).to(tl.float32), axis=1)


@triton.jit
def row_weights(x, top, share, SMOOTH: tl.constexpr):
    """Weights `[BLOCK_M, BLOCK_N]` of the direction of rows; `share` [BLOCK_M] over their sums."""
    if SMOOTH:
        return tl.exp2(x - top[:, None]) * share[:, None]
    else:
        return tl.where(x == top[:, None], share[:, None], 0.0)


@triton.jit
def column_weights(
    x,  # [BLOCK_M, BLOCK_N]
    share,  # [M_SETS]
    column_inside,  # [BLOCK_N]
    SMOOTH: tl.constexpr,
    SHIFT: tl.constexpr,
    COLUMN_PADDING: tl.constexpr,
    OUTER: tl.constexpr,
    PAIR: tl.constexpr,
    LANE: tl.constexpr,
):
    """Weights `[BLOCK_M, BLOCK_N]` of the direction of columns."""
    by_row = by_row_set(x, OUTER, PAIR, LANE)
    if SMOOTH:
        each = tl.exp2(by_row - max_row_sets(by_row) if SHIFT else by_row)
    else:
        each = (by_row == max_row_sets(by_row)).to(tl.float32)
    sums = sum_row_sets(each)
    if COLUMN_PADDING:  # sums of nothing but padding
        sums = tl.where(sums == 0.0, 1.0, sums)
    weights = tl.reshape(each * (over_rows(share[:, None], PAIR, LANE) / sums), x.shape)
    return tl.where(column_inside[None, :], weights, 0.0) if COLUMN_PADDING else weights


@triton.jit
def spread(x, ROWS: tl.constexpr, OUTER: tl.constexpr, PAIR: tl.constexpr, LANE: tl.constexpr):
    """`[M_SETS]` to the rows of a tile, `[ROWS]`."""
    if x.shape[0] == 1:
        return tl.sum(x, axis=0) + tl.zeros((ROWS,), tl.float32)
    else:
        zeros = by_row_set(tl.zeros((ROWS, 1), tl.float32), OUTER, PAIR, LANE)
        return tl.reshape(zeros + over_rows(x[:, None], PAIR, LANE), (ROWS,))


@triton.jit
def best_of_sets(
    top,  # [BLOCK_M], MASKED in rows that do not count
    OUTER: tl.constexpr,
    PAIR: tl.constexpr,
    LANE: tl.constexpr,
):
    """The best of each row set of a tile and how many rows have it: two [M_SETS]."""
    best = over_sets(top, True, OUTER, PAIR, LANE)
    equal = (top == spread(best, top.shape[0], OUTER, PAIR, LANE)).to(tl.float32)
    return best, over_sets(equal, False, OUTER, PAIR, LANE)


@triton.jit(do_not_specialize=["measure"])
def long_weights(
    row_ptr,  # [sets, K, D]
    row_lengths_ptr,  # [sets] int64, or None
    row_ids_ptr,  # [ROW_SETS] int64; or None: they lie in order
    column_ptr,  # the same for the columns
    column_lengths_ptr,
    column_ids_ptr,  # [ROW_SETS, COLUMN_SETS] int64, in bounds; or None: all of them
    weight_ptr,  # [ROW_SETS, K, COLUMN_SETS, L] by strides
    grad_score_ptr,  # [ROW_SETS, COLUMN_SETS] float32 by strides
    row_lost_ptr,  # [walks, ROW_SETS K] float32: what rounding takes of weights; or None
    column_lost_ptr,  # [row tiles, COLUMN_SETS L], 0 where nothing is stored
    scale_ptr,  # [] float32, multiplies the weights; or None
    moment_ptr,  # [programs] float32: sums of weight * alpha * cosine; or None
    best_ptr,  # [ROW_SLOTS, COLUMN_SETS] float32, MIL: best cosine of a part, or of all; or None
    equal_ptr,  # [ROW_SLOTS, COLUMN_SETS] float32: how many rows have it
    alpha,  # float, or a pointer to one
    D,
    K,
    L,
    PARTS,  # tiles that a row set takes, if it takes more than one
    ROW_SETS,
    COLUMN_SETS,
    WALK,  # column sets of one program
    measure,  # 1: store the best of each part, and no weights
    stride_row_set,  # strides of the inputs in units of 8 values
    stride_row_element,
    stride_column_set,
    stride_column_element,
    stride_score_row,
    stride_score_column,
    stride_weight_row_set,
    stride_weight_row,
    stride_weight_column_set,
    stride_weight_column,
    K2: tl.constexpr,
    SIMILARITY: tl.constexpr,
    SHIFT: tl.constexpr,
    ROWS: tl.constexpr,  # the directions that are needed
    COLUMNS: tl.constexpr,
    ADD: tl.constexpr,  # to the weights that are there
    ROW_RAGGED: tl.constexpr,
    COLUMN_RAGGED: tl.constexpr,
    ROW_PADDING: tl.constexpr,
    COLUMN_PADDING: tl.constexpr,
    ALPHA_ON_DEVICE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EVEN_D: tl.constexpr,  # BLOCK_D divides D
    RESIDENT: tl.constexpr,  # BLOCK_D holds D: the rows are loaded once
    OUTER: tl.constexpr,
    PAIR: tl.constexpr,
    LANE: tl.constexpr,
):
    """Weights of one tile of row sets with WALK column sets."""
    M_SETS: tl.constexpr = BLOCK_M // K2
    SMOOTH: tl.constexpr = SIMILARITY == "smooth_chamfer"
    HALVED: tl.constexpr = SMOOTH or SIMILARITY == "chamfer"
    MEAN: tl.constexpr = HALVED or SIMILARITY == "maxsim_mean"
    MASK_ROWS: tl.constexpr = COLUMNS and ROW_PADDING
    if ALPHA_ON_DEVICE:
        alpha = tl.load(alpha).to(tl.float32)
    row_slots = ROW_SETS * PARTS
    m_tiles = tl.cdiv(row_slots, M_SETS)
    tile_m, walk = tl.program_id(0) % m_tiles, tl.program_id(0) // m_tiles

    row_slot, row_element = row_order(BLOCK_M, OUTER, PAIR, LANE)
    row_slot += tile_m * M_SETS
    stored = row_slot < row_slots
    row_slot = tl.minimum(row_slot, row_slots - 1)
    row_element += row_slot % PARTS * BLOCK_M
    stored &= row_element < K
    row_place = row_slot // PARTS
    row_set = row_place
    if row_ids_ptr is not None:
        row_set = tl.load(row_ids_ptr + row_place)
    row_first, row_length = extent(
        None, row_lengths_ptr, row_set, stride_row_set, stride_row_element, K, ROW_RAGGED
    )
    row_inside = (row_element < row_length) & stored
    row_offsets = tl.minimum(row_element, row_length - 1).to(tl.int64) * stride_row_element
    row_offsets = (row_first + row_offsets) * 8
    # A chunk of weights has fewer than 2 ** 31.
    row_starts = row_place * stride_weight_row_set + row_element * stride_weight_row
    row_factor = tl.where(row_inside, 0.5 if HALVED else 1.0, 0.0)
    if MEAN:
        row_factor /= row_length.to(tl.float32)
    if scale_ptr is not None:
        row_factor *= tl.load(scale_ptr)

    slots = tile_m * M_SETS + tl.arange(0, M_SETS)
    slot_exists = slots < row_slots
    slots = tl.minimum(slots, row_slots - 1).to(tl.int64)
    n = tl.arange(0, BLOCK_N)
    rows = resident_rows(row_ptr, row_offsets, D, BLOCK_D, EVEN_D, RESIDENT)
    # A part that lies past the end of a short set has nothing to walk for.
    anything = tl.max(row_inside.to(tl.int32), axis=0)
    lost = tl.zeros((BLOCK_M,), tl.float32)
    moments = tl.zeros((BLOCK_M,), tl.float32)

    for step in range(0, bound(tl.minimum(WALK, COLUMN_SETS - walk * WALK))):
        place = (walk * WALK + step).to(tl.int64)
        column_set = place
        if column_ids_ptr is not None:
            first_place = (tile_m // PARTS).to(tl.int64)
            column_set = tl.load(column_ids_ptr + first_place * COLUMN_SETS + place)
        column_first, length = extent(
            None, column_lengths_ptr, column_set, stride_column_set, stride_column_element, L,
            COLUMN_RAGGED,
        )  # fmt: skip
        walked = length * anything
        top = tl.zeros((BLOCK_M,), tl.float32)
        share = tl.zeros((BLOCK_M,), tl.float32)
        if ROWS:
            if SHIFT or not SMOOTH:
                top += MASKED
            for begin in range(0, bound(walked), BLOCK_N):
                x = block_cosines(
                    row_ptr, row_offsets, rows, column_ptr, column_first,
                    tl.minimum(begin + n, length - 1), stride_column_element, D,
                    BLOCK_M, BLOCK_N, BLOCK_D, EVEN_D, RESIDENT,
                )  # fmt: skip
                x = x * (alpha * LOG2_E) if SMOOTH else x
                if COLUMN_PADDING:
                    x = tl.where((begin + n < length)[None, :], x, MASKED)
                top, share = extend_statistics(x, top, share, SMOOTH, SHIFT)
            row_scores = row_place.to(tl.int64) * stride_score_row + place * stride_score_column
            share = row_factor * tl.load(grad_score_ptr + row_scores) / tl.maximum(share, 1e-30)
            if SIMILARITY == "mil":
                own = tl.where(row_inside, top, MASKED)
                best, equal = best_of_sets(own, OUTER, PAIR, LANE)
                if best_ptr is not None:
                    places = slots * COLUMN_SETS + place
                    if measure == 1:
                        tl.store(best_ptr + places, best, mask=slot_exists)
                        tl.store(equal_ptr + places, equal, mask=slot_exists)
                        walked = 0
                    best, equal = tl.load(best_ptr + places), tl.load(equal_ptr + places)
                best = spread(best, BLOCK_M, OUTER, PAIR, LANE)
                equal = spread(equal, BLOCK_M, OUTER, PAIR, LANE)
                share = tl.where(top == best, share / equal, 0.0)
        if COLUMNS:
            slot_scores = slots * stride_score_row + place * stride_score_column
            column_share = tl.load(grad_score_ptr + slot_scores, mask=slot_exists, other=0.0)
            if HALVED:
                column_share *= 0.5
            if MEAN:
                column_share /= length.to(tl.float32)
            if scale_ptr is not None:
                column_share *= tl.load(scale_ptr)
        first_column = place.to(tl.int32) * stride_weight_column_set
        for begin in range(0, bound(walked), BLOCK_N):
            column_inside = begin + n < length
            x = block_cosines(
                row_ptr, row_offsets, rows, column_ptr, column_first,
                tl.minimum(begin + n, length - 1), stride_column_element, D,
                BLOCK_M, BLOCK_N, BLOCK_D, EVEN_D, RESIDENT,
            )  # fmt: skip
            x = x * (alpha * LOG2_E) if SMOOTH else x
            if COLUMN_PADDING and MASK_ROWS:
                x = tl.where(row_inside[:, None] & column_inside[None, :], x, MASKED)
            elif COLUMN_PADDING:
                x = tl.where(column_inside[None, :], x, MASKED)
            elif MASK_ROWS:
                x = tl.where(row_inside[:, None], x, MASKED)
            weights = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            if ROWS:
                weights += row_weights(x, top, share, SMOOTH)
            if COLUMNS:
                weights += column_weights(
                    x, column_share, column_inside, SMOOTH, SHIFT, COLUMN_PADDING, OUTER, PAIR, LANE
                )
            if moment_ptr is not None:
                moments += tl.sum(weights * x, axis=1)
            columns = first_column + (begin + n) * stride_weight_column
            ptrs = weight_ptr + (row_starts[:, None] + columns[None, :])
            mask = stored[:, None] & (begin + n < L)[None, :]
            if ADD:
                weights += tl.load(ptrs, mask=mask, other=0.0).to(tl.float32)
            narrow = weights.to(weight_ptr.dtype.element_ty)
            tl.store(ptrs, narrow, mask=mask)
            if row_lost_ptr is not None:
                part = tl.where(mask, weights - narrow.to(tl.float32), 0.0)
                lost += tl.sum(part, axis=1)
                lost_columns = (tile_m.to(tl.int64) * COLUMN_SETS + place) * L + begin + n
                tl.store(column_lost_ptr + lost_columns, tl.sum(part, axis=0), mask=begin + n < L)
        if not ADD and (ROW_RAGGED or COLUMN_RAGGED):  # nothing past the end of the set
            end = tl.cdiv(walked, BLOCK_N) * BLOCK_N
            for begin in range(bound(end), bound(L * (1 - measure)), BLOCK_N):
                columns = first_column + (begin + n) * stride_weight_column
                zeros = tl.zeros((BLOCK_M, BLOCK_N), weight_ptr.dtype.element_ty)
                mask = stored[:, None] & (begin + n < L)[None, :]
                tl.store(weight_ptr + (row_starts[:, None] + columns[None, :]), zeros, mask=mask)
    if row_lost_ptr is not None:
        lost_rows = (walk.to(tl.int64) * ROW_SETS + row_place) * K + row_element
        tl.store(row_lost_ptr + lost_rows, lost, mask=stored)
    if moment_ptr is not None:
        tl.store(moment_ptr + tl.program_id(0), tl.sum(moments) * LN_2)
