"""AdamW groups, the learning-rate schedule, and the average of the weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from divse.models import TwoTower
from divse.training.config import OptimConfig


def build_optimizer(model: TwoTower, config: OptimConfig) -> AdamW:
    """AdamW with a learning rate per part; vectors (biases, norms) and slots do not decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        bare = parameter.ndim < 2 or name.endswith(("head.slots", "head.queries"))
        key = (config.lr * scale_of(name, config), 0.0 if bare else config.weight_decay)
        groups.setdefault(key, []).append(parameter)
    return AdamW(
        (
            {"params": parameters, "lr": lr, "peak": lr, "weight_decay": decay}
            for (lr, decay), parameters in groups.items()
        ),
        betas=(0.9, config.beta2),
    )


def scale_of(name: str, config: OptimConfig) -> float:
    """Learning rate of a parameter as a multiple of `optim.lr`."""
    if name.startswith("image.encoder."):
        return config.image_scale
    return config.text_scale if name.startswith("text.encoder.") else 1.0


def schedule(step: int, steps: int, warmup: float, kind: str) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then cosine to zero."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if kind == "constant":
        return 1.0
    progress = (step - warmup) / max(1.0, steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: AdamW, share: float) -> None:
    """Set every group to a share of its peak learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share


class Average:
    """Exponential moving average of the weights; other tensors are copied.

    The decay grows from 0 with the number of updates, so that early weights are soon forgotten.
    """

    def __init__(self, state: dict[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.tensors = {name: tensor.detach().clone() for name, tensor in state.items()}

    @torch.no_grad()
    def update(self, state: dict[str, Tensor], step: int) -> None:
        """Move towards the present weights; `step` counts updates from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, tensor in state.items():
            if tensor.is_floating_point():
                self.tensors[name].lerp_(tensor.detach(), 1 - decay)
            else:
                self.tensors[name].copy_(tensor)
