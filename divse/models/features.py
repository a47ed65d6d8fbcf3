"""What an encoder hands to a head, and the interface that every encoder follows.

An encoder works in two stages, so that a frozen one is run once and its output kept on disk:

1. `local(...)`: raw input -> local features (B, N, C) with lengths. Frozen encoders stop here.
2. `forward(local, mask)`: local features -> Features, with the global feature; never frozen.

Between the two a tower may put a learned projection of the local features (projection.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from divse.models.layers import freeze_below
from divse.models.slot_attention import clear_padding


class Local(NamedTuple):
    """Local features: values (B, N, C) and how many of them are real, (B,) or None for all."""

    values: Tensor
    lengths: Tensor | None = None


class Features(NamedTuple):
    """Inputs of a head (B, N, C) and the global feature (B, G)."""

    inputs: Tensor
    pooled: Tensor


class Encoder(nn.Module):
    """Base class of the encoders: the widths that a tower needs to know, and freezing.

    Attributes:
        input_dim: C, channels of the inputs of the head.
        pooled_groups: Dimensions of the parts of the global feature; their sum is G.
        shape: Axes of the inputs, for their positions: (rows, columns) of a grid, () of a
            sequence, None where order means nothing or the inputs carry their positions.
        frozen: The submodule `backbone` stays fixed.
        config: The transformers configuration that rebuilds the backbone, if there is one.

    """

    input_dim: int
    pooled_groups: tuple[int, ...]
    shape: tuple[int, int] | tuple[()] | None = None
    frozen: bool = False
    config: Any = None

    def freeze(self) -> None:
        """Fix the backbone: no gradients, and evaluation mode for good."""
        if not hasattr(self, "backbone"):
            raise ValueError(f"{type(self).__name__} has no backbone to freeze; set frozen false")
        self.frozen = True
        self.get_submodule("backbone").requires_grad_(False).eval()

    def tune(self, blocks: int) -> None:
        """Train the last `blocks` blocks of the backbone alone (-1: all of it)."""
        if blocks < 0:
            return
        if not hasattr(self, "backbone"):
            raise ValueError(
                f"{type(self).__name__} has no backbone whose blocks could be chosen; "
                "leave tuned_blocks at -1"
            )
        freeze_below(self.get_submodule("backbone"), blocks)

    def train(self, mode: bool = True) -> Encoder:
        """Switch to training mode, except for what is frozen (its norms must not move)."""
        super().train(mode)
        if not mode or not hasattr(self, "backbone"):
            return self
        for module in self.get_submodule("backbone").modules():
            parameters = list(module.parameters())
            if self.frozen or (parameters and not any(p.requires_grad for p in parameters)):
                module.eval()
        return self

    def project_to(self, dim: int) -> None:
        """Expect local features that were projected to `dim` channels."""
        raise ValueError(
            f"{type(self).__name__} has no local features to project; set projection to global "
            "or none"
        )


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over real inputs: (B, N, C) -> (B, C)."""
    if mask is None:
        return values.mean(dim=1)
    return clear_padding(values, mask).sum(dim=1) / mask.sum(dim=1, keepdim=True)


def masked_max(values: Tensor, mask: Tensor | None) -> Tensor:
    """Maximum over real inputs: (B, N, C) -> (B, C)."""
    hidden = values if mask is None else values.masked_fill(~mask[:, :, None], float("-inf"))
    return hidden.amax(dim=1)


def direction(values: Tensor, mask: Tensor | None) -> Tensor:
    """Unit vector along the mean of the real inputs: (B, N, C) -> (B, C)."""
    return F.normalize(clear_padding(values, mask).sum(dim=1), dim=1)


def last(values: Tensor, mask: Tensor | None) -> Tensor:
    """Last real input, where a causal encoder (CLIP) has read everything: (B, N, C) -> (B, C)."""
    if mask is None:
        return values[:, -1]
    places = torch.arange(mask.shape[1], device=mask.device)
    return values[torch.arange(len(values), device=mask.device), (mask * places).argmax(dim=1)]


# name -> pooling of values (B, N, C) with a mask (B, N) or None -> (B, C)
POOLS: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
    "mean": masked_mean,
    "max": masked_max,
    "direction": direction,
    "first": lambda values, mask: values[:, 0],
    "last": last,
}


class PooledEncoder(Encoder):
    """An encoder whose global feature is pooled from its local features.

    Args:
        channels: C of the local features.
        pool: Names in POOLS; their results are joined.

    """

    def __init__(self, channels: int, pool: Sequence[str]) -> None:
        super().__init__()
        self.pool = tuple(pool)
        self.project_to(channels)

    def project_to(self, dim: int) -> None:
        """Expect local features of `dim` channels."""
        self.input_dim = dim
        self.pooled_groups = (dim,) * len(self.pool)

    def forward(self, local: Local, mask: Tensor | None) -> Features:
        """Pool the local features that `mask` (B, N) leaves, the same that the head reads."""
        inputs = clear_padding(local.values, mask)
        return Features(inputs, torch.cat([POOLS[name](inputs, mask) for name in self.pool], dim=1))


class Standardize(nn.Module):
    """Centre a feature (B, G) and scale each group of dimensions to a mean norm of one.

    The statistics are those that `fit` was given, fixed from then on and saved with the weights;
    before that the feature passes unchanged.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, groups: tuple[int, ...]) -> None:
        super().__init__()
        self.groups = groups
        self.register_buffer("mean", torch.zeros(sum(groups)))
        self.register_buffer("scale", torch.ones(sum(groups)))

    @torch.no_grad()
    def fit(self, features: Tensor) -> None:
        """Take the statistics of features (rows, G)."""
        self.mean.copy_(features.mean(dim=0))
        parts = torch.split(features - self.mean, list(self.groups), dim=1)
        scales = [1 / part.norm(dim=1).mean().clamp(min=1e-6) for part in parts]
        self.scale.copy_(
            torch.cat([s.expand(size) for s, size in zip(scales, self.groups, strict=True)])
        )

    def forward(self, features: Tensor) -> Tensor:
        """Centre and scale (B, G)."""
        return (features - self.mean) * self.scale
