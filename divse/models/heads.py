"""Heads: local features of a sample -> K elements (B, K, D), before the global feature.

A head is `Head(config, input_dim)`; its forward takes inputs (B, N, C), a mask (B, N) of the real
inputs or None, and positions (N, C) or (B, N, C) or None. Its last layer is a layer norm called
`norm`, except where `norm_after` is true: then the tower normalises the sum of elements and global
feature. `attend` takes the same and gives the attention map of each element, (B, K, N), which sums
to one over the inputs (mean over attention heads, of the last block). To add one: write the class,
add a line to HEADS.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from divse.models.config import HeadConfig
from divse.models.slot_attention import (
    AggregationBlock,
    Memory,
    SlotAttention,
    clear_padding,
    pooling_weights,
)


class SetPrediction(nn.Module):
    """Learned slots refined by aggregation blocks, by default with shared weights."""

    compete = True

    def __init__(self, config: HeadConfig, input_dim: int) -> None:
        super().__init__()
        self.steps = config.blocks
        self.slots = nn.Parameter(torch.randn(config.k, config.dim))
        self.blocks = nn.ModuleList(
            AggregationBlock(config, input_dim, self.compete)
            for _ in range(1 if config.shared else config.blocks)
        )
        self.norm = nn.LayerNorm(config.dim)

    def forward(
        self, inputs: Tensor, mask: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Inputs (B, N, C) -> slots (B, K, D), layer-normalised."""
        memories = self._memories(inputs, mask, positions)
        normed: Tensor = self.norm(self._refined(self.steps, memories, mask))
        return normed

    def attend(
        self, inputs: Tensor, mask: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Attention maps (B, K, N) of the last block over inputs (B, N, C)."""
        memories = self._memories(inputs, mask, positions)
        slots = self._refined(self.steps - 1, memories, mask)
        i = (self.steps - 1) % len(self.blocks)
        block: Any = self.blocks[i]
        weights: Tensor = block.attend(slots, memories[i], mask).mean(dim=1)
        return weights

    def _memories(
        self, inputs: Tensor, mask: Tensor | None, positions: Tensor | None
    ) -> list[Memory]:
        inputs = clear_padding(inputs, mask)
        return [block.memory(inputs, positions) for block in self.blocks]  # type: ignore

    def _refined(self, steps: int, memories: list[Memory], mask: Tensor | None) -> Tensor:
        """Slots (B, K, D) after so many blocks."""
        slots = self.slots.expand(len(memories[0].keys), -1, -1)
        for step in range(steps):
            i = step % len(self.blocks)
            slots = self.blocks[i](slots, memories[i], mask)
        return slots


class Transformer(SetPrediction):
    """The same blocks with ordinary attention: each slot has its own softmax over the inputs."""

    compete = False


class PIENet(nn.Module):
    """PIE-Net (PVSE, CVPR 2019): K attention maps of a small network over the inputs.

    elements = dropout(sigmoid(fc(softmax(w2 tanh(w1 x)) x))); they are added to the global feature
    before the layer norm. It reads no positions.
    """

    norm_after = True

    def __init__(self, config: HeadConfig, input_dim: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(input_dim, max(1, input_dim // 2), bias=False)
        self.maps = nn.Linear(max(1, input_dim // 2), config.k, bias=False)
        self.out = nn.Linear(input_dim, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        for layer in (self.hidden, self.maps, self.out):
            nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self, inputs: Tensor, mask: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Inputs (B, N, C) -> elements (B, K, D)."""
        inputs = clear_padding(inputs, mask)
        weights = self.attend(inputs, mask).to(inputs.dtype)
        elements: Tensor = self.dropout(self.out(weights @ inputs).sigmoid())
        return elements

    def attend(
        self, inputs: Tensor, mask: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Attention maps (B, K, N) over inputs (B, N, C)."""
        inputs = clear_padding(inputs, mask)
        logits = self.maps(self.hidden(inputs).tanh()).transpose(1, 2)  # (B, K, N)
        return pooling_weights(logits[:, None], mask)[:, 0]


class AttentionPooling(nn.Module):
    """Ordinary attention pooling: K learned queries, each with its own softmax over the inputs.

    With K = 1 and D four times as large it is the one-vector model that stores as much per item
    as four elements: the baseline that a set has to beat.
    """

    def __init__(self, config: HeadConfig, input_dim: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(config.k, config.dim))
        self.norm_inputs = nn.LayerNorm(input_dim)
        self.attention = SlotAttention(
            config.dim, input_dim, config.heads, config.head_dim, compete=False
        )
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.dim)

    def forward(
        self, inputs: Tensor, mask: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Inputs (B, N, C) -> pooled elements (B, K, D), layer-normalised."""
        pooled = self.attention(*self._reading(inputs, mask, positions), mask)
        normed: Tensor = self.norm(self.dropout(pooled))
        return normed

    def attend(
        self, inputs: Tensor, mask: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Attention maps (B, K, N) over inputs (B, N, C)."""
        return self.attention.attend(*self._reading(inputs, mask, positions), mask).mean(dim=1)

    def _reading(
        self, inputs: Tensor, mask: Tensor | None, positions: Tensor | None
    ) -> tuple[Tensor, Memory]:
        """Queries (B, K, D) and what they read."""
        inputs = self.norm_inputs(clear_padding(inputs, mask))
        queries = self.queries.expand(len(inputs), -1, -1)
        return queries, self.attention.memory(inputs, positions)


HEADS: dict[str, type[nn.Module]] = {
    "set_prediction": SetPrediction,
    "pie_net": PIENet,
    "transformer": Transformer,
    "pooling": AttentionPooling,
}
