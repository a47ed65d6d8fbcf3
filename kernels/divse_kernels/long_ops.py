"""Registration with torch of the scores of long sets, and of sets that are packed.

divse::long_scores    scores (B, N) by any similarity, of up to LONGEST elements

Their gradient is that of `divse::scores_backward`; packed sets have none.
"""

from typing import Any

import torch
from torch import Tensor

from divse_kernels import long_sets
from divse_kernels.backward_ops import alpha_gradient, scores_backward
from divse_kernels.launch import Side
from divse_kernels.long_tile import LONGEST, PackedSide

NO_PACKED_GRADIENT = (
    "packed sets (gallery_offsets) have no gradient: give padded sets with gallery_lengths, or "
    "detach the tensors or use no_grad"
)


@torch.library.custom_op("divse::long_scores", mutates_args=())
def long_scores(
    queries: Tensor,
    gallery: Tensor,
    similarity: str,
    alpha: float,
    alpha_tensor: Tensor | None,
    log_mean: bool,
    query_lengths: Tensor | None,
    gallery_lengths: Tensor | None,
    gallery_offsets: Tensor | None,
    longest: int,
) -> Tensor:
    """Scores; with offsets (N + 1,) the gallery is (total, D) and its longest set is told."""
    side = Side.of(gallery if gallery_offsets is None else gallery[None], gallery_lengths)
    if gallery_offsets is not None:
        starts = gallery_offsets.to(torch.int64).contiguous()
        side = PackedSide(side.values, None, starts, longest)
    return long_sets.scores(
        Side.of(queries, query_lengths),
        side,
        alpha if alpha_tensor is None else alpha_tensor,
        log_mean,
        similarity,
    )


@long_scores.register_fake
def _(queries: Tensor, gallery: Tensor, *options: Any) -> Tensor:
    offsets = options[-2]
    count = gallery.shape[0] if offsets is None else offsets.shape[0] - 1
    return queries.new_empty(queries.shape[0], count, dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    queries, gallery, ctx.similarity, ctx.alpha, alpha_tensor, _, *lengths, offsets, _ = inputs
    ctx.packed = offsets is not None
    scores = output if ctx.needs_input_grad[4] else None
    ctx.save_for_backward(queries, gallery, alpha_tensor, *lengths, scores)


def _backward(ctx: Any, grad_scores: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients for queries, gallery and alpha, each only where it is asked for."""
    if ctx.packed:
        raise ValueError(NO_PACKED_GRADIENT)
    queries, gallery, alpha_tensor, *lengths, scores = ctx.saved_tensors
    wanted = (*ctx.needs_input_grad[:2], ctx.needs_input_grad[4])
    how = ctx.similarity, ctx.alpha, alpha_tensor, *lengths
    *found, moment = scores_backward(grad_scores, queries, gallery, *how, *wanted)
    grads: list[Tensor | None] = [None] * 10
    grads[:2] = (g if w else None for g, w in zip(found, wanted, strict=False))
    if wanted[2]:
        grads[4] = alpha_gradient(grad_scores, scores, moment, alpha_tensor)
    return tuple(grads)


long_scores.register_autograd(_backward, setup_context=_setup_context)


def longest_packed(gallery: Tensor, offsets: Tensor) -> int:
    """Check offsets of a packed gallery (total, D) -> elements of its largest set.

    Waits for the device.
    """
    if gallery.ndim != 2 or offsets.ndim != 1 or len(offsets) < 1:
        raise ValueError(
            "a packed gallery is (total, D) with gallery_offsets (N + 1,), "
            f"got {tuple(gallery.shape)} and {tuple(offsets.shape)}"
        )
    if offsets.is_floating_point() or offsets.dtype == torch.bool:
        raise TypeError(f"gallery_offsets must be integers, got {offsets.dtype}")
    if offsets.device != gallery.device:
        raise ValueError(f"gallery_offsets must be on {gallery.device}, got {offsets.device}")
    bounds = offsets[:1], offsets[-1:]  # no sets are fine, as of size 1
    sizes = offsets.diff() if len(offsets) > 1 else offsets.new_ones(1)
    found = torch.cat([*bounds, sizes.min()[None], sizes.max()[None]]).tolist()
    if found[0] != 0 or found[1] != len(gallery) or found[2] < 1 or found[3] > LONGEST:
        raise ValueError(
            f"gallery_offsets must rise from 0 to {len(gallery)} in steps of 1 to {LONGEST}, got "
            f"{found[0]} to {found[1]} in steps of {found[2]} to {found[3]}"
        )
    return int(found[3])
