"""Gradients of pair scores: every set adds up what its own pairs weigh, and no other set's.

Pairs are sorted by set. A program owns one set, or a chunk of its pairs where it has many (a set
that is everybody's hardest negative), and a block of dimensions: it walks over its pairs in order
and adds weights (K x L) times the other sets' elements. The parts of chunks are added in order by a
second kernel. No two programs write to one place, so results repeat bit for bit; all tables are
made on the device, which the host never waits for.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from divse_kernels.launch import INTERPRETED, Side, launches, on_device, problem
from divse_kernels.problem import padded
from divse_kernels.tiles import bound
from divse_kernels.tuning import pair_sums_tile

CHUNK = 32  # pairs that one program walks over at most


@triton.jit
def add_pairs(
    other_ptr,  # [other sets, OTHER, D]
    weight_ptr,  # [PAIRS, SIZE, OTHER] float32, by strides
    grad_score_ptr,  # [PAIRS] float32
    pair_ptr,  # [PAIRS] int64: pairs sorted by set
    other_ids_ptr,  # [PAIRS] int64
    other_lengths_ptr,  # [other sets] int64, or None
    start_ptr,  # [SETS + 1] int64: where a set's pairs begin among the sorted ones
    owner_ptr,  # [programs] int64: a program's set
    chunk_ptr,  # [SETS] int64: the first program of a set
    part_ptr,  # [2 * cdiv(PAIRS, CHUNK), SIZE, D] float32
    grad_ptr,  # [SETS, SIZE, D]
    D,
    SETS,
    stride_other_set,  # in units of 8 values
    stride_other_element,
    stride_weight_own,
    stride_weight_other,
    SIZE: tl.constexpr,
    SIZE2: tl.constexpr,
    OTHER: tl.constexpr,
    RAGGED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The gradient of one set, or a part of it, `[SIZE, BLOCK_D]`."""
    owner = tl.load(owner_ptr + tl.program_id(0))
    if owner < SETS:
        dims = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        own = tl.arange(0, SIZE2)
        chunk = tl.program_id(0) - tl.load(chunk_ptr + owner)
        start, stop = tl.load(start_ptr + owner), tl.load(start_ptr + owner + 1)
        begin = start + chunk * CHUNK
        grad = tl.zeros((SIZE2, BLOCK_D), tl.float32)
        for p in range(bound(begin), bound(tl.minimum(begin + CHUNK, stop))):
            pair = tl.load(pair_ptr + p)
            grad_score = tl.load(grad_score_ptr + pair)
            other = tl.load(other_ids_ptr + pair)
            if grad_score != 0.0:  # or else nothing is read
                if RAGGED:
                    length = tl.load(other_lengths_ptr + other)
                values_ptrs = other_ptr + other * stride_other_set * 8 + dims
                weights_ptrs = weight_ptr + pair * (SIZE * OTHER) + own * stride_weight_own
                for element in range(OTHER):
                    width = D
                    if RAGGED:  # padding has no weight, but it may be no number
                        width = tl.where(element < length, D, 0)
                    values = tl.load(values_ptrs, mask=dims < width, other=0.0).to(tl.float32)
                    weights = tl.load(weights_ptrs, mask=own < SIZE, other=0.0)
                    grad += (weights * grad_score)[:, None] * values[None, :]
                    values_ptrs += stride_other_element * 8
                    weights_ptrs += stride_weight_other
        stored = (own < SIZE)[:, None] & (dims < D)[None, :]
        if stop - start <= CHUNK:
            rows = (owner * SIZE + own)[:, None] * D
            tl.store(grad_ptr + rows + dims[None, :], grad.to(grad_ptr.dtype.element_ty), stored)
        else:
            # Chunks of one set begin CHUNK pairs apart, and so do second chunks of different sets:
            # no two of a kind begin in one block of CHUNK pairs.
            part = 2 * (begin // CHUNK) + (chunk > 0).to(tl.int64)
            tl.store(part_ptr + (part * SIZE + own)[:, None] * D + dims[None, :], grad, stored)


@triton.jit
def add_parts(
    part_ptr,  # as above
    start_ptr,
    grad_ptr,
    D,
    SIZE: tl.constexpr,
    SIZE2: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The gradient of one set that has several parts, `[SIZE, BLOCK_D]`."""
    owner = tl.program_id(0).to(tl.int64)
    start, stop = tl.load(start_ptr + owner), tl.load(start_ptr + owner + 1)
    if stop - start > CHUNK:
        dims = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        own = tl.arange(0, SIZE2)
        stored = (own < SIZE)[:, None] & (dims < D)[None, :]
        grad = tl.zeros((SIZE2, BLOCK_D), tl.float32)
        for begin in range(bound(start), bound(stop), CHUNK):
            part = 2 * (begin // CHUNK) + tl.where(begin > start, 1, 0)
            rows = (part * SIZE + own)[:, None] * D
            grad += tl.load(part_ptr + rows + dims[None, :], mask=stored, other=0.0)
        rows = (owner * SIZE + own)[:, None] * D
        tl.store(grad_ptr + rows + dims[None, :], grad.to(grad_ptr.dtype.element_ty), stored)


class Segments(NamedTuple):
    """Pairs by set: the tables of `add_pairs`."""

    pairs: Tensor
    starts: Tensor
    owners: Tensor
    chunks: Tensor


def segments(ids: Tensor, count: int) -> Segments:
    """Sort pairs by the ids (P,) of one of their sets, out of `count`, and share out the work."""
    ordered, pairs = torch.sort(ids, stable=True)
    starts = torch.searchsorted(ordered, torch.arange(count + 1, device=ids.device))
    needed = ((starts.diff() + CHUNK - 1) // CHUNK).clamp_min(1)
    ends = needed.cumsum(0)
    programs = torch.arange(count + len(ids) // CHUNK, device=ids.device)
    owners = torch.searchsorted(ends, programs, right=True)
    return Segments(pairs, starts, owners, ends - needed)


def gradient(
    own: Side,
    other: Side,
    own_ids: Tensor,
    other_ids: Tensor,
    weights: Tensor,
    grad_scores: Tensor,
) -> Tensor:
    """Launch the kernels: the gradient for `own`, (count, size, D) of their type.

    Ids (P,) are in bounds; weights (P, own size, other size) of any strides; grad_scores (P,).
    """
    count, size, dims = own.values.shape
    final = torch.float32 if INTERPRETED else own.values.dtype  # the interpreter truncates
    grad = torch.zeros(own.values.shape, dtype=final, device=own.values.device)
    if len(own_ids) == 0:
        return grad.to(own.values.dtype)
    table = segments(own_ids, count)
    parts = grad.new_empty(2 * triton.cdiv(len(own_ids), CHUNK), size, dims, dtype=torch.float32)
    tile = pair_sums_tile(problem(own, other, 1.0))
    shape = {"SIZE": size, "SIZE2": padded(size), "CHUNK": CHUNK, "BLOCK_D": tile.block_d}
    blocks = triton.cdiv(dims, tile.block_d)
    launches["add_pairs"] += 1
    with on_device(grad.device):
        add_pairs[(len(table.owners), blocks)](
            other.values,
            weights,
            grad_scores,
            table.pairs,
            other_ids,
            other.lengths,
            table.starts,
            table.owners,
            table.chunks,
            parts,
            grad,
            dims,
            count,
            *other.strides,
            *weights.stride()[1:],
            OTHER=other.size,
            RAGGED=other.ragged,
            **shape,
            **tile.options,
        )
        add_parts[(count, blocks)](parts, table.starts, grad, dims, **shape, **tile.options)
    return grad.to(own.values.dtype)
