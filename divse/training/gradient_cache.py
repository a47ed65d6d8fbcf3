"""Gradient caching: a loss over a batch of which only a part fits through the model at a time.

Contrastive losses do not add up over sub-batches, but their gradients do, once the embeddings'
gradients are known (GradCache, Gao et al. 2021):

1. embed every sub-batch without a graph;
2. compute the loss of all embeddings, and its gradient with respect to them;
3. embed every sub-batch again, in the same random state, and carry that gradient on.

Memory is that of one sub-batch and of all embeddings, time that of one more forward pass. Gradients
are those of the plain step, up to dropout's other draws and batch norms, which see a sub-batch as
their batch. Their running statistics move once a sub-batch, in step 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from divse.data import Batch
from divse.models import SetOutput
from divse.training.checkpoint import load_random_state, random_state
from divse.training.losses import LossParts

Embed = Callable[[Batch], tuple[SetOutput, SetOutput]]
Loss = Callable[[SetOutput, SetOutput], LossParts]
PER_PICTURE = {"pixels", "image_index", "regions", "region_counts"}


def backward(model: nn.Module, parts: Sequence[Batch], embed: Embed, loss: Loss) -> LossParts:
    """Add the gradients of the loss of a batch, given in parts, to the model's -> the loss."""
    if len(parts) == 1:
        result = loss(*embed(parts[0]))
        result.total.backward()  # type: ignore[no-untyped-call]
        separate_gradients(model)
        return result
    device = next(model.parameters()).device
    with torch.no_grad(), statistics_held(model):
        states, outputs = [], []
        for part in parts:
            states.append(random_state(device))
            outputs.append(embed(part))
    leaves = [join([output[side] for output in outputs]) for side in (0, 1)]
    result = loss(*leaves)
    result.total.backward()  # type: ignore[no-untyped-call]
    done = [0, 0]
    for part, state in zip(parts, states, strict=True):
        load_random_state(state, device)
        for side, output in enumerate(embed(part)):
            carry_on(output, leaves[side], done[side])
            done[side] += len(output.sets)
        separate_gradients(model)
    return result


def join(outputs: Sequence[SetOutput]) -> SetOutput:
    """Outputs of sub-batches as one, a leaf that takes gradients."""
    return SetOutput(*(torch.cat(x).requires_grad_() for x in zip(*outputs, strict=True)))


def carry_on(output: SetOutput, leaf: SetOutput, start: int) -> None:
    """Backward pass of one sub-batch from the gradient of its rows of the joined output."""
    pairs = [
        (again, cached.grad[start : start + len(again)])
        for again, cached in zip(output, leaf, strict=True)
        if cached.grad is not None and again.requires_grad
    ]
    if pairs:
        tensors, gradients = zip(*pairs, strict=True)
        torch.autograd.backward(tensors, gradients)


def separate_gradients(model: nn.Module) -> None:
    """Give each gradient memory of its own.

    The backward pass of a compiled model may give several parameters views of one tensor (a ViT's
    class token and positions, where it sees one picture), and autograd keeps them as they are. The
    next sub-batch would then be added, and clipping be done, once for each of them.
    """
    taken = set()
    for parameter in model.parameters():
        if parameter.grad is not None:
            memory = parameter.grad.untyped_storage().data_ptr()
            if memory in taken:
                parameter.grad = parameter.grad.clone()
            taken.add(memory)


@contextmanager
def statistics_held(model: nn.Module) -> Iterator[None]:
    """Keep the running statistics of batch norms as they are, in training mode."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked = norm.num_batches_tracked.clone()
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def cut(batch: Batch, pictures: int) -> list[Batch]:
    """Cut a batch into runs of so many pictures with their captions; 0 leaves it whole."""
    total = len(batch.image_index)
    if not 0 < pictures < total:
        return [batch]
    begins = torch.arange(0, total, pictures)
    firsts = torch.searchsorted(batch.image_of_caption, begins).tolist()
    lasts = [*firsts[1:], len(batch.caption_index)]
    return [
        piece(batch, slice(begin, begin + pictures), slice(first, last))
        for begin, first, last in zip(begins.tolist(), firsts, lasts, strict=True)
    ]


def piece(batch: Batch, pictures: slice, captions: slice) -> Batch:
    """Some pictures of a batch with their captions, cut to the longest of these."""
    fields: dict[str, Tensor | None] = {}
    for name, tensor in batch._asdict().items():
        rows = pictures if name in PER_PICTURE else captions
        fields[name] = None if tensor is None else tensor[rows]
    some = Batch(**fields)  # type: ignore[arg-type]
    return some._replace(
        tokens=some.tokens[:, : int(some.lengths.max())],
        image_of_caption=some.image_of_caption - pictures.start,
    )
