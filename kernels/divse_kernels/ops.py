"""Registration with torch: the operators, their fake versions and the gradient.

    divse::smooth_chamfer    scores (B, N) of B query sets and N gallery sets

Alpha comes as a number, or as a tensor that overrides it (then its value stays on the device and
the range-proof path of the kernels is taken).
"""

from typing import Any

import torch
from torch import Tensor

from divse_kernels import smooth_chamfer_forward
from divse_kernels.backward_ops import alpha_gradient, scores_backward
from divse_kernels.launch import INTERPRETED, Side
from divse_kernels.problem import MAX_SIZE, SMOOTH_CHAMFER

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MIN_DIMS, MAX_DIMS, DIMS_STEP = 32, 2048, 8
MAX_ALPHA = 1000.0


def _device_refusal(device: torch.device) -> str | None:
    if INTERPRETED:
        return None
    if device.type != "cuda":
        return (
            f"the Triton kernels need CUDA tensors, got a tensor on {device}; move it to a GPU, "
            "or set TRITON_INTERPRET=1 before Python starts to interpret them on a CPU"
        )
    if torch.version.hip is not None:
        return "the Triton kernels use NVIDIA instructions, and this torch is built for AMD"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return f"the Triton kernels need compute capability 8.0, {device} has {capability}"
    return None


def _shape_refusal(queries: Tensor, gallery: Tensor, longest: int) -> str | None:
    for name, sets in (("queries", queries), ("gallery", gallery)):
        if sets.ndim != 3:
            return f"{name} must be (sets, elements, dimensions), got shape {tuple(sets.shape)}"
        if not 1 <= sets.shape[1] <= longest:
            return f"sets must hold 1 to {longest} elements, {name} hold {sets.shape[1]}"
    dims = queries.shape[2]
    if dims != gallery.shape[2]:
        return f"queries have {dims} dimensions and the gallery {gallery.shape[2]}: they must agree"
    if dims % DIMS_STEP or not MIN_DIMS <= dims <= MAX_DIMS:
        return f"D must be a multiple of {DIMS_STEP} from {MIN_DIMS} to {MAX_DIMS}, got {dims}"
    return None


def supports(
    queries: Tensor, gallery: Tensor, mixed: bool = False, longest: int = MAX_SIZE
) -> str | None:
    """Why the kernels cannot score (B, K, D) queries against an (N, L, D) gallery, or None.

    `mixed`: for a kernel that also takes float32 queries with a gallery of 16 bits. `longest`: for
    a kernel that takes sets of so many elements.
    """
    if queries.device != gallery.device:
        return f"queries are on {queries.device} and the gallery on {gallery.device}: move one"
    same = queries.dtype == gallery.dtype or (mixed and queries.dtype == torch.float32)
    if not same or not {queries.dtype, gallery.dtype} <= set(DTYPES):
        return (
            "queries and gallery must both be float32, float16 or bfloat16, "
            f"got {queries.dtype} and {gallery.dtype}"
        )
    return _shape_refusal(queries, gallery, longest) or _device_refusal(queries.device)


@torch.library.custom_op("divse::smooth_chamfer", mutates_args=())
def _scores(
    queries: Tensor,
    gallery: Tensor,
    alpha: float,
    alpha_tensor: Tensor | None,
    log_mean: bool,
    query_lengths: Tensor | None,
    gallery_lengths: Tensor | None,
) -> Tensor:
    return smooth_chamfer_forward.scores(
        Side.of(queries, query_lengths),
        Side.of(gallery, gallery_lengths),
        alpha if alpha_tensor is None else alpha_tensor,
        log_mean,
    )


@_scores.register_fake
def _(queries: Tensor, gallery: Tensor, *_: Any) -> Tensor:
    return queries.new_empty(queries.shape[0], gallery.shape[0], dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    queries, gallery, ctx.alpha, alpha_tensor, _, query_lengths, gallery_lengths = inputs
    scores = output if ctx.needs_input_grad[3] else None
    ctx.save_for_backward(queries, gallery, alpha_tensor, query_lengths, gallery_lengths, scores)


def _backward(ctx: Any, grad_scores: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients for queries, gallery and alpha, each only where it is asked for."""
    queries, gallery, alpha_tensor, query_lengths, gallery_lengths, scores = ctx.saved_tensors
    need_queries, need_gallery, _, need_alpha = ctx.needs_input_grad[:4]
    grad_queries, grad_gallery, moment = scores_backward(
        grad_scores,
        queries,
        gallery,
        SMOOTH_CHAMFER,
        ctx.alpha,
        alpha_tensor,
        query_lengths,
        gallery_lengths,
        need_queries,
        need_gallery,
        need_alpha,
    )
    grads: list[Tensor | None] = [None] * 7
    if need_queries:
        grads[0] = grad_queries
    if need_gallery:
        grads[1] = grad_gallery
    if need_alpha:
        grads[3] = alpha_gradient(grad_scores, scores, moment, alpha_tensor)
    return tuple(grads)


_scores.register_autograd(_backward, setup_context=_setup_context)


def check_lengths(name: str, sets: Tensor, lengths: Tensor | None) -> None:
    """Raise if `lengths` are not one integer for each of the sets (count, size, D)."""
    if lengths is None:
        return
    if lengths.shape != sets.shape[:1] or lengths.device != sets.device:
        raise ValueError(
            f"{name} must be {tuple(sets.shape[:1])} on {sets.device}, "
            f"got {tuple(lengths.shape)} on {lengths.device}"
        )
    if lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise TypeError(f"{name} must be integers, got {lengths.dtype}")


def check_sides(
    queries: Tensor,
    gallery: Tensor,
    query_lengths: Tensor | None,
    gallery_lengths: Tensor | None,
    longest: int = MAX_SIZE,
) -> None:
    """Raise if the kernels cannot take these sets and lengths."""
    if not torch.compiler.is_compiling():
        reason = supports(queries, gallery, longest=longest)
        if reason:
            raise ValueError(reason)
    check_lengths("query_lengths", queries, query_lengths)
    check_lengths("gallery_lengths", gallery, gallery_lengths)


def read_alpha(alpha: float | Tensor, device: torch.device) -> tuple[float, Tensor | None]:
    """Alpha as operators take it: a number, or a tensor () on the device that overrides it."""
    if isinstance(alpha, Tensor):
        if alpha.numel() != 1:
            raise ValueError(f"alpha must be one number, got a tensor of {tuple(alpha.shape)}")
        return 0.0, alpha.reshape(()).to(device, torch.float32)
    if not 0 < alpha <= MAX_ALPHA:
        raise ValueError(f"alpha must be in (0, {MAX_ALPHA:g}], got {alpha}")
    return float(alpha), None


def smooth_chamfer(
    queries: Tensor,
    gallery: Tensor,
    alpha: float | Tensor = 16.0,
    log_mean: bool = False,
    query_lengths: Tensor | None = None,
    gallery_lengths: Tensor | None = None,
) -> Tensor:
    """Smooth-Chamfer score of every query set with every gallery set, in plain torch:

        c = alpha * torch.einsum("bkd,nld->bnkl", queries, gallery)
        scores = (c.logsumexp(3).mean(2) + c.logsumexp(2).mean(2)) / (2 * alpha)

    Elements are taken as they are; the ranges of alpha are those of unit vectors.

    Arguments:
        queries: (B, K, D) float32, float16 or bfloat16; K up to 32, D a multiple of 8.
        gallery: (N, L, D) of the same kind.
        alpha: a number in (0, 1000], or a tensor of one number, which may require a gradient.
        log_mean: mean instead of sum inside the logarithms.
        query_lengths: (B,) integers from 1 to K: how many elements of each set are real.
        gallery_lengths: (N,) likewise.

    Returns:
        (B, N) float32, differentiable in queries, gallery and alpha; gradients repeat bit for bit.
    """
    check_sides(queries, gallery, query_lengths, gallery_lengths)
    number, tensor = read_alpha(alpha, queries.device)
    return _scores(queries, gallery, number, tensor, log_mean, query_lengths, gallery_lengths)
