"""Registration with torch and the public function of the mean of an RBF kernel.

divse::rbf_mean             mean () over all pairs of elements
divse::rbf_mean_backward    gradients (P, D) and (Q, D)
"""

from typing import Any

import torch
from torch import Tensor

from divse_kernels.backward_ops import empty_unless, present
from divse_kernels.ops import supports
from divse_kernels.rbf import Pairs


@torch.library.custom_op("divse::rbf_mean", mutates_args=())
def _mean(x: Tensor, y: Tensor | None) -> Tensor:
    return Pairs(x, y).mean()


@_mean.register_fake
def _(x: Tensor, y: Tensor | None) -> Tensor:
    return x.new_empty((), dtype=torch.float32)


@torch.library.custom_op("divse::rbf_mean_backward", mutates_args=())
def _gradient(
    grad: Tensor, x: Tensor, y: Tensor | None, for_x: bool, for_y: bool
) -> tuple[Tensor, Tensor]:
    grads = Pairs(x, y).gradients(grad, (for_x, for_y))
    first, second = present(tuple(grads), (x, x if y is None else y))
    return first, second


@_gradient.register_fake
def _(grad: Tensor, x: Tensor, y: Tensor | None, for_x: bool, for_y: bool) -> tuple[Tensor, Tensor]:
    return empty_unless(for_x, x), empty_unless(for_y and y is not None, x if y is None else y)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor | None], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    for_x, for_y = ctx.needs_input_grad
    grad_x, grad_y = _gradient(grad, *ctx.saved_tensors, for_x, for_y)
    return grad_x if for_x else None, grad_y if for_y else None


_mean.register_autograd(_backward, setup_context=_setup_context)


def rbf_mean(x: Tensor, y: Tensor | None = None) -> Tensor:
    """The mean of an RBF kernel over all pairs of elements, in plain torch:

        torch.exp(-0.5 * torch.cdist(x, y)).mean()

    but no distance is ever in memory. Forward and backward cost four products of the size of the
    distances, three where y is x: the distances twice, and the gradients.

    Arguments:
        x: (P, D) float32, float16 or bfloat16, D a multiple of 8 from 32 to 2048.
        y: (Q, D) of the same kind; without it, the same elements as x.

    Returns:
        () float32, differentiable in x and y; gradients repeat bit for bit. Elements nearer than
        2 ** -9 of the largest norm count as equal, which has no gradient.
    """
    for name, elements in (("x", x), ("y", y)):
        if elements is not None and (elements.ndim != 2 or len(elements) == 0):
            shape = tuple(elements.shape)
            raise ValueError(f"{name} must be (elements, D) and not empty, got shape {shape}")
    others = x if y is None else y
    if not torch.compiler.is_compiling() and (reason := supports(x[:, None], others[:, None])):
        raise ValueError(reason)
    result: Tensor = _mean(x, None if y is x else y)
    return result
