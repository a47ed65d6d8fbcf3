"""Slot attention: K learned slots compete for the inputs (reference: DivE, CVPR 2023).

One aggregation block, pre-norm::

    slots = slots + Attention(LN(slots), LN(inputs))
    slots = slots + FeedForward(LN(slots))

The attention weights are a softmax over the SLOT axis, so slots compete for every input, and are
then renormalised over the inputs, so every slot receives a weighted mean. An input that is
padding is removed between these two steps: removing it earlier (a large negative logit before the
slot softmax) would not remove it, because the softmax over slots gives every input a total mass
of one whatever its logits are.

Shapes: B samples, N inputs, C input channels, K slots, D slot dimensions, H heads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from divse.models.config import HeadConfig

EPS = 1e-7  # of the renormalisation over inputs (published code)


def competing_weights(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over slots, padding removed, renormalised over inputs.

    Args:
        logits: (B, H, K, N).
        mask: (B, N), True where an input is real; None when all are.

    Returns:
        (B, H, K, N); zero on padding, each slot's weights sum to one.

    """
    weights = logits.float().softmax(dim=2) + EPS
    if mask is not None:
        weights = weights * mask[:, None, None, :]
    return weights / weights.sum(dim=3, keepdim=True)


def pooling_weights(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Ordinary attention: softmax over inputs, (B, H, K, N) -> (B, H, K, N), zero on padding."""
    if mask is not None:
        logits = logits.masked_fill(~mask[:, None, None, :], float("-inf"))
    return logits.float().softmax(dim=3)


class Memory(NamedTuple):
    """Keys and values (B, H, N, d) of the inputs."""

    keys: Tensor
    values: Tensor


class SlotAttention(nn.Module):
    """Multi-head attention of slots (B, K, D) over inputs (B, N, C) -> (B, K, D).

    Args:
        dim: D.
        input_dim: C.
        heads: H.
        head_dim: Dimensions of one head.
        compete: Slots compete for the inputs (softmax over slots), or each attends on its own.
        dropout: On what a slot receives.

    """

    def __init__(
        self,
        dim: int,
        input_dim: int,
        heads: int,
        head_dim: int,
        compete: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.scale = head_dim**-0.5
        self.weights = competing_weights if compete else pooling_weights
        self.query = nn.Linear(dim, inner, bias=False)
        self.key = nn.Linear(input_dim, inner, bias=False)
        self.value = nn.Linear(input_dim, inner, bias=False)
        self.out = nn.Linear(inner, dim)
        self.dropout = nn.Dropout(dropout)

    def memory(self, inputs: Tensor, positions: Tensor | None) -> Memory:
        """Keys and values of the inputs (B, N, C); `positions` (N, C) or (B, N, C) go to keys."""
        keys = inputs if positions is None else inputs + positions
        return Memory(self._split(self.key(keys)), self._split(self.value(inputs)))

    def forward(self, slots: Tensor, memory: Memory, mask: Tensor | None) -> Tensor:
        """Attend from slots (B, K, D) to the memory of the inputs -> (B, K, D)."""
        weights = self.attend(slots, memory, mask).to(memory.values.dtype)
        update: Tensor = self.dropout(
            self.out((weights @ memory.values).transpose(1, 2).flatten(2))
        )
        return update

    def attend(self, slots: Tensor, memory: Memory, mask: Tensor | None) -> Tensor:
        """Weights (B, H, K, N) of the inputs in what each slot receives; they sum to one over N."""
        query = self._split(self.query(slots))  # (B, H, K, d)
        logits = query @ memory.keys.transpose(2, 3) * self.scale  # (B, H, K, N)
        return self.weights(logits, mask)

    def _split(self, x: Tensor) -> Tensor:
        samples, count, inner = x.shape
        return x.view(samples, count, self.heads, inner // self.heads).transpose(1, 2)


class AggregationBlock(nn.Module):
    """Slot attention, then a feed-forward layer, each pre-norm and residual."""

    def __init__(self, config: HeadConfig, input_dim: int, compete: bool = True) -> None:
        super().__init__()
        dim, wide = config.dim, config.dim * config.feedforward
        self.norm_slots = nn.LayerNorm(dim)
        self.norm_inputs = nn.LayerNorm(input_dim)
        self.attention = SlotAttention(
            dim, input_dim, config.heads, config.head_dim, compete, config.dropout
        )
        self.norm_feedforward = nn.LayerNorm(dim)
        self.feedforward = nn.Sequential(
            nn.Linear(dim, wide), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(wide, dim)
        )

    def memory(self, inputs: Tensor, positions: Tensor | None) -> Memory:
        """What the slots read: made once, however often the block is repeated."""
        return self.attention.memory(self.norm_inputs(inputs), positions)

    def forward(self, slots: Tensor, memory: Memory, mask: Tensor | None) -> Tensor:
        """Refine slots (B, K, D) by what they read."""
        slots = slots + self.attention(self.norm_slots(slots), memory, mask)
        refined: Tensor = slots + self.feedforward(self.norm_feedforward(slots))
        return refined

    def attend(self, slots: Tensor, memory: Memory, mask: Tensor | None) -> Tensor:
        """Weights (B, H, K, N) with which the slots (B, K, D) read."""
        return self.attention.attend(self.norm_slots(slots), memory, mask)


def length_mask(lengths: Tensor | None, size: int) -> Tensor | None:
    """(B,) lengths -> (B, size) bool, True where real; None stays None."""
    if lengths is None:
        return None
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def clear_padding(inputs: Tensor, mask: Tensor | None) -> Tensor:
    """Zero the padded inputs (B, N, C): a NaN there would survive a multiplication by zero."""
    return inputs if mask is None else inputs.masked_fill(~mask[:, :, None], 0.0)
