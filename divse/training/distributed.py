"""Several processes train as one: torchrun starts them, each embeds its part of every batch.

The embeddings of all processes are gathered and each computes the loss of the whole batch. Its
gradient then goes on through the process's own embeddings only, times the number of processes, so
that the MEAN of the parameters' gradients over the processes is the gradient of one process with
the whole batch: for what embeds, and for what the loss itself learns, which every process has in
full. Nothing is sent in the backward pass.

torch's DistributedDataParallel is not used: it rearranges its buckets after its first step, so with
three or more processes a resumed run would add up in another order than an uninterrupted one.

Batch norms: each process normalises by the statistics of its part, as sub-batches do, so their
losses are not those of the whole batch; `train.sync_batchnorm` makes them the same on CUDA devices.
Their running statistics are averaged over the processes after every step.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

BUCKET = 1 << 24  # numbers that travel together: enough that latency does not count
PATIENCE = timedelta(hours=4)  # the others wait while the first runs frozen encoders


def rank() -> int:
    """Return the number of this process, 0 for the first or only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def claim_device() -> None:
    """Make this process's own GPU the current one, before anything is put on the first."""
    if "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def join(device: torch.device) -> None:
    """Join the processes that torchrun started, if it did; from now on only the first prints."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return
    if device.index is not None:
        raise ValueError(
            f"train.device: got {device} for several processes, expected cuda: each takes its own"
        )
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)
    if rank():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open as long as the process lives)


def leave() -> bool:
    """Part from the other processes; whether this one is the first, which goes on alone."""
    first = rank() == 0
    if dist.is_initialized():
        dist.destroy_process_group()
    return first


@contextmanager
def first_goes_first() -> Iterator[None]:
    """Let the first process through before the others, who then find what it has written."""
    if rank():
        shared(None)
    yield
    if rank() == 0:
        shared(None)


def shared(value: Any) -> Any:
    """Return what the first process gives, in all of them; also a meeting point."""
    box = [value]
    if processes() > 1:
        dist.broadcast_object_list(box)
    return box[0]


def collected(value: Any) -> list[Any]:
    """Return the values of all processes, in all of them."""
    if processes() == 1:
        return [value]
    values: list[Any] = [None] * processes()
    dist.all_gather_object(values, value)
    return values


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, counts: list[int]) -> Tensor:
        first = sum(counts[: rank()])
        ctx.rows = slice(first, first + len(own))
        padded = own.new_zeros((max(counts), *own.shape[1:]))
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0][ctx.rows] * processes(), None


def gather(*tensors: Tensor) -> list[Tensor]:
    """Join each tensor (n, ...) with those of the other processes, in their order -> (sum n, ...).

    Every process may have another n; see the head of this file for gradients.
    """
    if processes() == 1:
        return list(tensors)
    counts = collected([len(tensor) for tensor in tensors])
    return [
        _Gather.apply(tensor, [count[i] for count in counts]) for i, tensor in enumerate(tensors)
    ]


def average_gradients(model: nn.Module) -> None:
    """Replace gradients, and statistics that batch norms gathered, by means over the processes."""
    average([p.grad for p in model.parameters() if p.grad is not None])
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
    statistics = [x for norm in norms for x in (norm.running_mean, norm.running_var)]
    average([x for x in statistics if x is not None])


@torch.no_grad()
def average(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by their means over the processes, in buckets that are always the same."""
    if processes() == 1:
        return
    sums = []
    for bucket in buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        sums.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
    for bucket, flat, work in sums:
        work.wait()
        parts = torch.split(flat / processes(), [tensor.numel() for tensor in bucket])
        for tensor, part in zip(bucket, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def buckets(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Divide tensors into runs of one type and about BUCKET numbers."""
    found: list[list[Tensor]] = []
    room = 0
    for tensor in tensors:
        if not found or room < tensor.numel() or tensor.dtype != found[-1][0].dtype:
            found.append([])
            room = BUCKET
        found[-1].append(tensor)
        room -= tensor.numel()
    return found


@torch.no_grad()
def start_alike(module: nn.Module) -> None:
    """Give all processes the weights of the first."""
    if processes() > 1:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, 0)


def draw_apart(seed: int) -> None:
    """Seed torch so that no two processes drop out the same; the first keeps its generator."""
    if rank():
        torch.manual_seed(seed + rank())
