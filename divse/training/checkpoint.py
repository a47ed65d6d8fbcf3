"""The state of a run as named tensors: weights, optimiser and random generators.

All of it goes into one safetensors file (models/weights.py) that is replaced atomically, so
whenever a process dies, the file is a whole one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

LAST = "last.safetensors"


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Flatten the state of an optimiser: {"<parameter>.<key>": tensor}."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{key}": torch.as_tensor(v) for i, s in state.items() for key, v in s.items()}


def load_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load what `optimizer_tensors` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".")
        state.setdefault(int(index), {})[key] = tensor
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    kept = {i: s["exp_avg"].shape for i, s in state.items()}
    if any(i >= len(parameters) or parameters[i].shape != shape for i, shape in kept.items()):
        raise ValueError("the optimiser's state is that of other settings or data: start a new run")
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def random_state(device: torch.device) -> dict[str, Tensor]:
    """State of torch's generators; augmentation and order depend on (seed, epoch, step) alone."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def load_random_state(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Set the generators to what `random_state` returned."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put tensors under a prefix."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take the tensors under a prefix, without it."""
    start = prefix + "."
    return {name[len(start) :]: t for name, t in tensors.items() if name.startswith(start)}
