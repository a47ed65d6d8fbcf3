"""Similarities with learned parameters: they belong to the model, its optimiser and its files."""

from __future__ import annotations

import torch
from torch import nn

# similarity -> its learned keyword arguments of divse.score and where they start (published code)
LEARNED: dict[str, dict[str, float]] = {"mp": {"scale": 1.0, "shift": 0.0}}


class LearnedSimilarity(nn.Module):
    """Parameters of a similarity, scalars by the names that divse.score takes them under."""

    def __init__(self, start: dict[str, float]) -> None:
        super().__init__()
        for name, value in start.items():
            self.register_parameter(name, nn.Parameter(torch.tensor(float(value))))


def learned_similarity(name: str) -> LearnedSimilarity | None:
    """Parameters of a similarity, or None if it has none to learn."""
    return LearnedSimilarity(LEARNED[name]) if name in LEARNED else None
