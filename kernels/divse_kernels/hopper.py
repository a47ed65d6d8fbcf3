"""Smooth-Chamfer scores of all pairs by the CUDA C++ kernel for Hopper, where it was built.

    divse::smooth_chamfer_hopper    scores (B, N) of B query sets and N gallery sets

Its folds hide under its products, which Triton's kernel cannot do; in return it serves plain cases
alone (`why_not`). The gradient is that of the Triton kernels. Whether it is the faster one for some
sets is measured by `python -m divse_kernels.autotune`, and kept beside the winning tiles.
"""

import functools
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from divse_kernels import tile_cache
from divse_kernels.backward_ops import scores_backward
from divse_kernels.launch import Side, launches, on_device, problem
from divse_kernels.ops import DTYPES, supports
from divse_kernels.problem import SMOOTH_CHAMFER, Problem

SIZES = (2, 4, 8, 16, 32)
CAPABILITY = (9, 0)
MAX_ALPHA = 80.0
NAME = "hopper_scores"


@functools.cache
def module() -> ModuleType | None:
    """The compiled module, or None where it was not built."""
    try:
        import divse_cuda
    except ImportError:
        return None
    return divse_cuda


def why_not(
    queries: Tensor, gallery: Tensor, alpha: float | Tensor = 16.0, ragged: bool = False
) -> str | None:
    """Why the kernel cannot score (B, K, D) queries against an (N, L, D) gallery, or None."""
    reason = _device_refusal(queries.device) or supports(queries, gallery)
    if reason is not None:
        return reason
    if queries.dtype not in DTYPES[1:]:
        return f"the CUDA kernel takes float16 or bfloat16, got {queries.dtype}"
    if queries.shape[1] != gallery.shape[1] or queries.shape[1] not in SIZES:
        return (
            f"the CUDA kernel takes sets of one size, {', '.join(map(str, SIZES))}, "
            f"got {queries.shape[1]} and {gallery.shape[1]}"
        )
    if ragged:
        return "the CUDA kernel takes sets of one size, got lengths"
    if isinstance(alpha, Tensor):
        return "the CUDA kernel takes alpha as a number, got a tensor"
    if not 0 < alpha <= MAX_ALPHA:
        return f"the CUDA kernel takes alpha in (0, {MAX_ALPHA:g}], got {alpha}"
    return None


def _device_refusal(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"the CUDA kernel needs CUDA tensors, got a tensor on {device}; move it to a GPU"
    if torch.cuda.get_device_capability(device) != CAPABILITY:
        return f"the CUDA kernel is for compute capability 9.0 (H100, H200), {device} has another"
    if module() is None:
        return "divse_cuda was not built: install divse where nvcc 12.5 or newer is found"
    return None


def faster(queries: Tensor, gallery: Tensor, alpha: float) -> bool:
    """Whether autotuning has found this kernel right, and faster than Triton's, for such sets."""
    return bool(tile_cache.kept(NAME, _task(queries, gallery, alpha)).get("faster", False))


def keep(queries: Tensor, gallery: Tensor, alpha: float, found: Mapping[str, Any]) -> None:
    """Store what was measured for such sets: `faster`, and the times."""
    tile_cache.keep_choice(NAME, _task(queries, gallery, alpha), found)


def _task(queries: Tensor, gallery: Tensor, alpha: float) -> Problem:
    return problem(Side(queries, None), Side(gallery, None), alpha)


def launch(queries: Side, gallery: Side, alpha: float, log_mean: bool) -> Tensor:
    """Launch the kernel: (B, N) float32 scores."""
    device = queries.values.device
    out = torch.empty(queries.count, gallery.count, dtype=torch.float32, device=device)
    if out.numel() == 0:
        return out
    # Two tiles of rows go to a cluster of blocks, so the larger side goes along the rows.
    rows, columns, strides = queries, gallery, out.stride()
    if queries.count < gallery.count:
        rows, columns, strides = gallery, queries, strides[::-1]
    launches[NAME] += 1
    cuda = module()
    assert cuda is not None, "asked for without why_not"
    with on_device(device):
        cuda.smooth_chamfer(
            _described(rows.values),
            _described(columns.values),
            queries.values.dtype == torch.float16,
            out.data_ptr(),
            strides,
            alpha,
            log_mean,
            _stream(device),
        )
    return out


def _described(sets: Tensor) -> tuple[int, ...]:
    return (sets.data_ptr(), *sets.shape, *sets.stride()[:2])


def _stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


@torch.library.custom_op("divse::smooth_chamfer_hopper", mutates_args=())
def _scores(queries: Tensor, gallery: Tensor, alpha: float, log_mean: bool) -> Tensor:
    sides = (x.contiguous() if 0 in x.stride() else x for x in (queries, gallery))
    return launch(*(Side.of(x, None) for x in sides), alpha, log_mean)


@_scores.register_fake
def _(queries: Tensor, gallery: Tensor, *_: Any) -> Tensor:
    return queries.new_empty(queries.shape[0], gallery.shape[0], dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    queries, gallery, ctx.alpha, _ = inputs
    ctx.save_for_backward(queries, gallery)


def _backward(ctx: Any, grad_scores: Tensor) -> tuple[Tensor | None, ...]:
    queries, gallery = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:2]
    options = SMOOTH_CHAMFER, ctx.alpha, None, None, None, *wanted, False
    *grads, _ = scores_backward(grad_scores, queries, gallery, *options)
    return *(g if want else None for g, want in zip(grads, wanted, strict=True)), None, None


_scores.register_autograd(_backward, setup_context=_setup_context)


def smooth_chamfer(
    queries: Tensor, gallery: Tensor, alpha: float = 16.0, log_mean: bool = False
) -> Tensor:
    """Score as `divse_kernels.smooth_chamfer` does, by the CUDA kernel.

    Arguments:
        queries: (B, K, D) float16 or bfloat16 on a Hopper GPU; K of 2, 4, 8, 16 or 32.
        gallery: (N, K, D) of the same kind.
        alpha: a number in (0, 80].
        log_mean: mean instead of sum inside the logarithms.

    Returns:
        (B, N) float32, differentiable in queries and gallery; gradients repeat bit for bit.

    Raises:
        ValueError: what the kernel does not serve (`why_not`).
    """
    if not torch.compiler.is_compiling() and (reason := why_not(queries, gallery, alpha)):
        raise ValueError(reason)
    return _scores(queries, gallery, float(alpha), log_mean)
