"""Heads: local features of a sample -> K elements (B, K, D), before the global feature.

A head is `Head(config, input_dim)`; its forward takes inputs (B, N, C), a mask (B, N) of the real
inputs or None, and positions (N, C) or None; its last layer is a layer norm called `norm`. To add
one: write the class, add a line to HEADS.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from divse.models.config import HeadConfig
from divse.models.slot_attention import AggregationBlock, SlotAttention, clear_padding


class SetPrediction(nn.Module):
    """Learned slots refined by aggregation blocks, by default with shared weights."""

    def __init__(self, config: HeadConfig, input_dim: int) -> None:
        super().__init__()
        self.steps = config.blocks
        self.slots = nn.Parameter(torch.randn(config.k, config.dim))
        self.blocks = nn.ModuleList(
            AggregationBlock(
                config.dim,
                input_dim,
                config.heads,
                config.head_dim,
                config.feedforward,
                config.dropout,
            )
            for _ in range(1 if config.shared else config.blocks)
        )
        self.norm = nn.LayerNorm(config.dim)

    def forward(
        self, inputs: Tensor, mask: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Inputs (B, N, C) -> slots (B, K, D), layer-normalised."""
        inputs = clear_padding(inputs, mask)
        slots = self.slots.expand(len(inputs), -1, -1)
        memories = [block.memory(inputs, positions) for block in self.blocks]  # type: ignore
        for step in range(self.steps):
            i = step % len(self.blocks)
            slots = self.blocks[i](slots, memories[i], mask)
        normed: Tensor = self.norm(slots)
        return normed


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
        inputs = self.norm_inputs(clear_padding(inputs, mask))
        queries = self.queries.expand(len(inputs), -1, -1)
        pooled = self.attention(queries, self.attention.memory(inputs, positions), mask)
        normed: Tensor = self.norm(self.dropout(pooled))
        return normed


HEADS: dict[str, type[nn.Module]] = {
    "set_prediction": SetPrediction,
    "pooling": AttentionPooling,
}
