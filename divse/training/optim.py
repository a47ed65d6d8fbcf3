"""AdamW groups, the learning-rate schedule, fixed backbones, and the average of the weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from divse.models import TwoTower, layers
from divse.training.config import Config, OptimConfig


def build_optimizer(model: TwoTower, config: Config) -> AdamW:
    """AdamW with a learning rate per part; vectors (biases, norms) and slots do not decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    scales = rate_scales(model, config)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        bare = parameter.ndim < 2 or name.endswith(("head.slots", "head.queries"))
        key = (config.optim.lr * scales[name], 0.0 if bare else config.optim.weight_decay)
        groups.setdefault(key, []).append(parameter)
    return AdamW(
        (
            {"params": parameters, "lr": lr, "peak": lr, "weight_decay": decay}
            for (lr, decay), parameters in groups.items()
        ),
        betas=(0.9, config.optim.beta2),
    )


def rate_scales(model: TwoTower, config: Config) -> dict[str, float]:
    """Learning rate of every parameter as a multiple of `optim.lr`.

    Encoders have their own; in their backbones it falls from block to block with the distance from
    the head.
    """
    scales = dict.fromkeys((name for name, _ in model.named_parameters()), 1.0)
    sides = (
        ("image.encoder", config.optim.image_scale, config.image.layer_decay),
        ("text.encoder", config.optim.text_scale, config.text.layer_decay),
    )
    for side, scale, decay in sides:
        encoder = model.get_submodule(side)
        scales |= {f"{side}.{name}": scale for name, _ in encoder.named_parameters()}
        backbone = getattr(encoder, "backbone", None)
        if decay != 1 and isinstance(backbone, nn.Module):
            falling = layers.scales(backbone, decay).items()
            scales |= {f"{side}.backbone.{name}": scale * share for name, share in falling}
    return scales


def schedule(config: OptimConfig, step: int, epoch_steps: int, epochs: int) -> float:
    """Share of the peak learning rate at a step of the run: linear warm-up, then the schedule."""
    warmup = epoch_steps * config.warmup_epochs
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "step":
        return config.gamma ** (step // (epoch_steps * config.step_epochs))
    if config.schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(1.0, epoch_steps * epochs - warmup)
    return 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: AdamW, share: float) -> None:
    """Set every group to a share of its peak learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share


class Backbones:
    """The trained weights of the encoders' backbones, which first epochs may leave fixed."""

    def __init__(self, model: TwoTower) -> None:
        self.model = model
        self.parameters = [
            parameter
            for name, parameter in model.named_parameters()
            if ".encoder.backbone." in name and parameter.requires_grad
        ]

    def train(self, trained: bool) -> None:
        """Switch the model to training mode, with its backbones trained or fixed."""
        for parameter in self.parameters:
            parameter.requires_grad_(trained)
            parameter.grad = None
        self.model.train()


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
