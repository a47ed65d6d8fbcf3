"""How the gradient of a loss spreads over the elements of a set: dense or sparse supervision.

MIL hands the whole gradient of a score to one pair of elements, Chamfer to the nearest pairs,
Smooth-Chamfer to every pair by its weight (DivE, CVPR 2023, section 3.3). What an element receives
from all scores of a batch is measured here, not assumed.

Shapes: I pictures, T captions, K elements, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Supervision(NamedTuple):
    """Mean share of a set's gradient of its elements, the largest first; (K,) fp64, sum 1."""

    images: Tensor
    texts: Tensor


def supervision(
    images: Tensor, texts: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
) -> Supervision:
    """Measure how `loss` (I, K, D), (T, K, D) -> () supervises the elements of its sets.

    An element's share is the norm of the part of its gradient that turns it (what is parallel to a
    unit vector is lost in normalising), of the sum of these norms over its set. Sets that receive
    no gradient at all do not count; nan if there is no other.
    """
    sides = [side.detach().clone().requires_grad_() for side in (images, texts)]
    with torch.enable_grad():
        gradients = torch.autograd.grad(loss(*sides), sides)
    return Supervision(*(_shares(x.detach(), g) for x, g in zip(sides, gradients, strict=True)))


def _shares(values: Tensor, gradient: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize(values.double(), dim=-1)
    gradient = gradient.double()
    turning = gradient - (gradient * unit).sum(-1, keepdim=True) * unit  # (B, K, D)
    norms = turning.norm(dim=-1).sort(-1, descending=True).values  # (B, K)
    total = norms.sum(-1, keepdim=True)
    shares: Tensor = (norms / total)[total[:, 0] > 0]
    return shares.mean(0)
