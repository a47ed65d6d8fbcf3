"""Registration with torch and the public function of log-sum-exps of scores.

divse::row_column_lse             of every row (B,) and column (N,), then their largest scores
divse::row_column_lse_backward    gradients (B, K, D) and (N, L, D), and a moment for alpha's
"""

from typing import Any

import torch
from torch import Tensor

from divse_kernels.backward_ops import empty_unless, present
from divse_kernels.launch import Side
from divse_kernels.mining_ops import check_groups
from divse_kernels.ops import check_sides, read_alpha
from divse_kernels.problem import SMOOTH_CHAMFER
from divse_kernels.row_column_lse import log_sum_exps
from divse_kernels.score_backward import LogSumExps, Loss, gradients
from divse_kernels.score_ops import kernel_name


@torch.library.custom_op("divse::row_column_lse", mutates_args=())
def _lse(
    queries: Tensor,
    gallery: Tensor,
    query_groups: Tensor,
    gallery_groups: Tensor,
    temperature: float,
    alpha: float,
    alpha_tensor: Tensor | None,
    log_mean: bool,
    similarity: str,
    query_lengths: Tensor | None,
    gallery_lengths: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return log_sum_exps(
        Side.of(queries, query_lengths),
        Side.of(gallery, gallery_lengths),
        query_groups,
        gallery_groups,
        temperature,
        alpha if alpha_tensor is None else alpha_tensor,
        log_mean,
        similarity,
    )


@_lse.register_fake
def _(queries: Tensor, gallery: Tensor, *_: Any) -> tuple[Tensor, ...]:
    counts = (queries.shape[0], gallery.shape[0])
    return tuple(queries.new_empty(count, dtype=torch.float32) for count in counts * 2)


def _statistics(lse: Tensor, grad: Tensor, groups: Tensor) -> LogSumExps:
    """What the kernel reads; a set without negatives has no gradient, and its exps are 0."""
    none = lse == -torch.inf
    return LogSumExps(
        lse.masked_fill(none, torch.inf),
        grad.float().masked_fill(none, 0.0).contiguous(),
        groups.contiguous(),
    )


@torch.library.custom_op("divse::row_column_lse_backward", mutates_args=())
def _gradient(
    grad_row_lse: Tensor,
    grad_column_lse: Tensor,
    row_lse: Tensor,
    column_lse: Tensor,
    queries: Tensor,
    gallery: Tensor,
    query_groups: Tensor,
    gallery_groups: Tensor,
    temperature: float,
    alpha: float,
    alpha_tensor: Tensor | None,
    log_mean: bool,
    similarity: str,
    query_lengths: Tensor | None,
    gallery_lengths: Tensor | None,
    for_queries: bool,
    for_gallery: bool,
    with_moment: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    loss = Loss(
        None,
        _statistics(row_lse, grad_row_lse, query_groups),
        _statistics(column_lse, grad_column_lse, gallery_groups),
        temperature,
    )
    *grads, moment = gradients(
        Side.of(queries, query_lengths),
        Side.of(gallery, gallery_lengths),
        loss,
        alpha if alpha_tensor is None else alpha_tensor,
        log_mean,
        similarity,
        (for_queries, for_gallery, with_moment),
    )
    return *present(tuple(grads), (queries, gallery)), moment


@_gradient.register_fake
def _(
    grad_row_lse: Tensor,
    grad_column_lse: Tensor,
    row_lse: Tensor,
    column_lse: Tensor,
    queries: Tensor,
    gallery: Tensor,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    *_, for_queries, for_gallery, _ = options
    moment = queries.new_empty((), dtype=torch.float64)
    return empty_unless(for_queries, queries), empty_unless(for_gallery, gallery), moment


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.temperature, ctx.alpha, _, ctx.log_mean, ctx.similarity = inputs[4:9]
    ctx.mark_non_differentiable(*output[2:])
    ctx.save_for_backward(*output[:2], *inputs[:4], inputs[6], *inputs[9:11])


def _backward(
    ctx: Any, grad_rows: Tensor, grad_columns: Tensor, *_: Any
) -> tuple[Tensor | None, ...]:
    """Gradients for queries, gallery and alpha, each only where it is asked for."""
    *saved, alpha_tensor, query_lengths, gallery_lengths = ctx.saved_tensors
    need_alpha = ctx.needs_input_grad[6]
    grad_queries, grad_gallery, moment = _gradient(
        grad_rows,
        grad_columns,
        *saved,
        ctx.temperature,
        ctx.alpha,
        alpha_tensor,
        ctx.log_mean,
        ctx.similarity,
        query_lengths,
        gallery_lengths,
        *ctx.needs_input_grad[:2],
        need_alpha,
    )
    grads: list[Tensor | None] = [None] * 11
    if ctx.needs_input_grad[0]:
        grads[0] = grad_queries
    if ctx.needs_input_grad[1]:
        grads[1] = grad_gallery
    if need_alpha:
        grads[6] = (moment / alpha_tensor / alpha_tensor).to(alpha_tensor.dtype)
    return tuple(grads)


_lse.register_autograd(_backward, setup_context=_setup_context)


def row_column_lse(
    queries: Tensor,
    gallery: Tensor,
    query_groups: Tensor,
    gallery_groups: Tensor,
    alpha: float | Tensor = 16.0,
    log_mean: bool = False,
    temperature: float = 1.0,
    query_lengths: Tensor | None = None,
    gallery_lengths: Tensor | None = None,
    *,
    similarity: str = SMOOTH_CHAMFER,
    reduction: str = "sum",
    with_maxima: bool = False,
) -> tuple[Tensor, ...]:
    """Log-sum-exps of the scores with sets of other groups, both ways, in plain torch:

        s = scores(queries, gallery).masked_fill(query_groups[:, None] == gallery_groups, -inf)
        (s / temperature).logsumexp(1), (s / temperature).logsumexp(0)

    but the scores are never in memory, forward or backward. Forward and backward cost four products
    of the size of the cosines: the scores, the scores again, and the two gradients. Other arguments
    are those of `scores`.

    Arguments:
        query_groups: (B,) integers; pairs of one group do not count.
        gallery_groups: (N,) likewise.
        temperature: a positive number.
        with_maxima: also give `s.amax(1)` and `s.amax(0)`, which are at hand.

    Returns:
        (B,) and (N,) float32, -inf where no set is of another group (which has no gradient),
        differentiable in queries, gallery and alpha; gradients repeat bit for bit. Then, if asked
        for, the maxima (B,) and (N,), which have no gradient.
    """
    check_sides(queries, gallery, query_lengths, gallery_lengths)
    check_groups("query_groups", query_groups, queries)
    check_groups("gallery_groups", gallery_groups, gallery)
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    number, tensor = read_alpha(alpha, queries.device)
    result: tuple[Tensor, ...] = _lse(
        queries,
        gallery,
        query_groups.to(torch.int64),
        gallery_groups.to(torch.int64),
        float(temperature),
        number,
        tensor,
        log_mean,
        kernel_name(similarity, reduction),
        query_lengths,
        gallery_lengths,
    )
    return result if with_maxima else result[:2]
