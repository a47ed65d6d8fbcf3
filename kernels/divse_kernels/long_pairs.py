"""Gradients of the scores of pairs of long sets.

The kernel of long_weights.py writes the weights of some pairs, K x L of each, in float32, and
batched products with the gathered elements make a gradient of every pair. A second kernel adds
those of each set in the order of the pairs, without atomics: results repeat bit for bit. How many
pairs are taken at once is bounded by the memory that all this takes; pairs come in one order.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from divse_kernels import products
from divse_kernels.launch import Side, launches, on_device
from divse_kernels.long_backward import Written, write_all
from divse_kernels.tiles import bound
from divse_kernels.tuning import FEW_WARPS

BLOCK = 1024  # values of a set that one program adds


@triton.jit
def add_by_set(
    part_ptr,  # [PAIRS, VALUES] float32
    pair_ptr,  # [PAIRS] int64: pairs sorted by set
    set_ptr,  # [PAIRS] int64: their sets
    first_ptr,  # [PAIRS] int64: the first sorted pair of the same set
    end_ptr,  # [PAIRS] int64: past the last
    sum_ptr,  # [sets, VALUES] float32
    VALUES,
    BLOCK: tl.constexpr,
):
    """Add to a block of one set what its pairs have for it; in plain torch, but in a fixed order:

    sums.index_add_(0, sets, parts)
    """
    place = tl.program_id(0).to(tl.int64)
    if tl.load(first_ptr + place) == place:
        values = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = values < VALUES
        target = sum_ptr + tl.load(set_ptr + place) * VALUES + values
        total = tl.load(target, mask=inside, other=0.0)
        for i in range(bound(place), bound(tl.load(end_ptr + place))):
            pair = tl.load(pair_ptr + i)
            total += tl.load(part_ptr + pair * VALUES + values, mask=inside, other=0.0)
        tl.store(target, total, mask=inside)


def add(parts: Tensor, sets: Tensor, sums: Tensor) -> None:
    """Launch the kernel: parts (P, ...) of the sets (P,) are added to sums (count, ...)."""
    ordered, pairs = torch.sort(sets, stable=True)
    values = parts[0].numel()
    launches["add_by_set"] += 1
    with on_device(sums.device):
        add_by_set[(len(sets), triton.cdiv(values, BLOCK))](
            parts,
            pairs,
            ordered,
            torch.searchsorted(ordered, ordered),
            torch.searchsorted(ordered, ordered, right=True),
            sums,
            values,
            BLOCK=BLOCK,
            num_warps=FEW_WARPS,
        )


def gathered(side: Side, ids: Tensor) -> Tensor:
    """The sets that ids (P,) name, (P, size, D) float32, 0 in padding."""
    values = side.values[ids].float()
    if side.lengths is None:
        return values
    inside = torch.arange(side.size, device=ids.device) < side.lengths[ids][:, None]
    return values.where(inside[..., None], 0.0)


def pieces(queries: Side, gallery: Side, count: int) -> Iterator[slice]:
    """Pairs that are taken at once: weights, gathered elements and gradients, all in float32."""
    k, size, dims = queries.size, gallery.size, queries.values.shape[2]
    most = max(1, products.WORKSPACE // (4 * (k * size + 2 * (k + size) * dims)))
    return (slice(start, min(start + most, count)) for start in range(0, count, most))


def gradients(
    queries: Side,
    gallery: Side,
    query_ids: Tensor,
    gallery_ids: Tensor,
    grad_scores: Tensor,
    alpha: float | Tensor,
    similarity: str,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Gradients for the queries and the gallery in their type, where `wanted`, and a moment.

    Ids and grad_scores (P,), ids in bounds. The moment, a float64 and 0 unless wanted, is the sum
    over all pairs of weight * alpha * cosine.
    """
    sides, ids = (queries, gallery), (query_ids, gallery_ids)
    sums = [
        s.values.new_zeros(s.values.shape, dtype=torch.float32) if w else None
        for s, w in zip(sides, wanted[:2], strict=True)
    ]
    moment = grad_scores.new_zeros((), dtype=torch.float64)
    with products.exact_products(queries.values.device):
        for some in pieces(*sides, len(query_ids)):
            q, g = (one[some] for one in ids)
            weights = grad_scores.new_empty(len(q), queries.size, 1, gallery.size)
            grads = grad_scores[some, None].float()
            written = Written(weights, grads, moment=moment if wanted[2] else None)
            write_all(*sides, written, alpha, similarity, (q, g))
            weights = weights.squeeze(2)
            if sums[0] is not None:
                add(weights @ gathered(gallery, g), q, sums[0])
            if sums[1] is not None:
                add(weights.mT @ gathered(queries, q), g, sums[1])
    grads = (None if s is None else s.to(x.values.dtype) for s, x in zip(sums, sides, strict=True))
    return *grads, moment
