"""Heads: local features of a sample -> K elements (B, K, D), before the global feature.

A head is `Head(config, input_dim)`; its forward takes inputs (B, N, C), a mask (B, N) of the real
inputs or None, and positions (N, C) or (B, N, C) or None. Its last layer is a layer norm called
`norm`, except where `norm_after` is true: then the tower normalises the sum of elements and global
feature. To add one: write the class, add a line to HEADS.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from divse.models.config import HeadConfig
from divse.models.slot_attention import (
    AggregationBlock,
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
        inputs = clear_padding(inputs, mask)
        slots = self.slots.expand(len(inputs), -1, -1)
        memories = [block.memory(inputs, positions) for block in self.blocks]  # type: ignore
        for step in range(self.steps):
            i = step % len(self.blocks)
            slots = self.blocks[i](slots, memories[i], mask)
        normed: Tensor = self.norm(slots)
        return normed


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
        logits = self.maps(self.hidden(inputs).tanh()).transpose(1, 2)  # (B, K, N)
        weights = pooling_weights(logits[:, None], mask)[:, 0].to(inputs.dtype)
        elements: Tensor = self.dropout(self.out(weights @ inputs).sigmoid())
        return elements


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
    "pie_net": PIENet,
    "transformer": Transformer,
    "pooling": AttentionPooling,
}
