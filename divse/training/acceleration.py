"""How a model computes, not what: activation checkpointing, torch.compile, joint batch norms."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from divse.models import TwoTower
from divse.models.slot_attention import AggregationBlock
from divse.training.config import TrainConfig, unknown


def prepare(model: TwoTower, config: TrainConfig) -> TwoTower:
    """Return the model as the settings ask; names and values of its weights stay the same."""
    check_acceleration(config, next(model.parameters()).device)
    if config.sync_batchnorm:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    if config.activation_checkpointing:
        checkpoint_activations(model)
    if config.compile:
        compile_parts(model, config.compile)
    return model


def check_acceleration(config: TrainConfig, device: torch.device) -> None:
    """Refuse what a device or torch cannot do."""
    if config.sync_batchnorm and device.type != "cuda":
        raise ValueError(
            "train.sync_batchnorm works on CUDA devices alone; on a CPU take one process, or "
            "encoders and projections without batch norms"
        )
    if config.compile:
        known = torch.compiler.list_backends(exclude_tags=None)
        if config.compile not in known:
            raise ValueError(unknown("train.compile backend", config.compile, known))


def checkpoint_activations(model: TwoTower) -> None:
    """Keep only what goes into a block; compute what is inside again in the backward pass.

    Backbones of timm and transformers divide themselves. Running statistics of batch norms move
    twice a step, as torch says of its checkpoints.
    """
    for module in model.modules():
        if isinstance(module, AggregationBlock):
            checkpoint_block(module)
        elif hasattr(module, "set_grad_checkpointing"):
            divide: Any = module.set_grad_checkpointing  # of a timm model
            divide(True)
        elif getattr(module, "supports_gradient_checkpointing", False):
            checkpoint_transformer(module)


def checkpoint_transformer(model: Any) -> None:
    """Divide a transformers model; version 6 drops the method that versions before 5 know."""
    options = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def checkpoint_block(block: nn.Module) -> None:
    """Let a block run through a checkpoint whenever gradients are wanted."""
    forward = block.forward

    def run(*inputs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*inputs)
        return checkpoint(forward, *inputs, use_reentrant=False)

    block.forward = run


def compile_parts(model: TwoTower, backend: str) -> None:
    """Compile backbones and heads, in place: their parameters keep their names."""
    for tower in (model.image, model.text):
        tower.head.compile(backend=backend)
        backbone = getattr(tower.encoder, "backbone", None)
        if isinstance(backbone, nn.Module):
            backbone.compile(backend=backend)
