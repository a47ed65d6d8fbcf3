"""What an encoder hands to a head, and the interface that every encoder follows.

An encoder works in two stages, so that a frozen one is run once and its output kept on disk:

1. `local(...)`: raw input -> local features (B, N, C) with lengths. Frozen encoders stop here.
2. `forward(local)`: local features -> Features, with the global feature; always trainable.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn


class Local(NamedTuple):
    """Local features: values (B, N, C) and how many of them are real, (B,) or None for all."""

    values: Tensor
    lengths: Tensor | None = None


class Features(NamedTuple):
    """Inputs of a head: inputs (B, N, C), lengths (B,) or None, pooled (B, G), positions (N, C)."""

    inputs: Tensor
    lengths: Tensor | None
    pooled: Tensor
    positions: Tensor | None = None


class Encoder(nn.Module):
    """Base class of the encoders: the two widths that a tower needs to know, and freezing.

    Attributes:
        input_dim: C, channels of the inputs of the head.
        pooled_dim: G, dimensions of the global feature.
        frozen: The submodule `backbone` stays fixed.

    """

    input_dim: int
    pooled_dim: int
    frozen: bool = False

    def freeze(self) -> None:
        """Fix the backbone: no gradients, and evaluation mode for good."""
        if not hasattr(self, "backbone"):
            raise ValueError(f"{type(self).__name__} has no backbone to freeze; set frozen false")
        self.frozen = True
        self.get_submodule("backbone").requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Encoder:
        """Switch to training mode, except for a frozen backbone (its norms must not move)."""
        super().train(mode)
        if self.frozen:
            self.get_submodule("backbone").eval()
        return self
