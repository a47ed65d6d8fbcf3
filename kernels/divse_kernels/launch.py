"""What both launchers need: one side's sets as a kernel takes them, the device, the counter."""

import contextlib
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from .tiles import INTERPRET
from .tuning import family

#: Launches of every kernel by its name, for tests and `explain` to prove what ran.
launches: Counter[str] = Counter()

VECTOR = 8  # values that one load moves: strides and D are multiples of it
INTERPRETED = bool(INTERPRET.value)


@dataclass(frozen=True)
class Side:
    """The sets (count, size, D) along the rows or the columns of the cosines."""

    values: Tensor
    lengths: Tensor | None

    @classmethod
    def of(cls, values: Tensor, lengths: Tensor | None) -> "Side":
        """Take sets as they are, or copy them if vector loads cannot reach them."""
        aligned = values.stride(2) == 1 and values.data_ptr() % 16 == 0
        if not aligned or values.stride(0) % VECTOR or values.stride(1) % VECTOR:
            values = values.clone(memory_format=torch.contiguous_format)
        return cls(values, None if lengths is None else lengths.to(torch.int64).contiguous())

    @property
    def count(self) -> int:
        """Number of sets."""
        return self.values.shape[0]

    @property
    def size(self) -> int:
        """Elements of a set."""
        return self.values.shape[1]

    @property
    def padded(self) -> int:
        """Elements of a set in a tile: the next power of two."""
        return 1 << (self.size - 1).bit_length()

    @property
    def elements(self) -> int:
        """Elements of all sets, as tiles count them."""
        return self.count * self.padded

    @property
    def strides(self) -> tuple[int, int]:
        """Steps to the next set and to the next element, in vectors."""
        return self.values.stride(0) // VECTOR, self.values.stride(1) // VECTOR


def architecture(device: torch.device) -> str:
    """Family of the device that kernels will run on."""
    return family(None if INTERPRETED else torch.cuda.get_device_capability(device))


def on_device(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Make the tensors' device current: Triton launches on the current device's stream."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
