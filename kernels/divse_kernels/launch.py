"""What both launchers need: the two sides as kernels take them, the device, the counter."""

import contextlib
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from divse_kernels.problem import ONE_SIDED, SMOOTH_CHAMFER, Problem, family
from divse_kernels.tiles import INTERPRET

#: Launches of every kernel by its name, so that tests and `explain` can prove what ran.
launches: Counter[str] = Counter()

VECTOR = 8  # values that one load moves: strides and D are multiples of it
INTERPRETED = bool(INTERPRET.value)


@dataclass(frozen=True)
class Side:
    """The sets along the rows or the columns: values (count, size, D), lengths (count,) or None."""

    values: Tensor
    lengths: Tensor | None

    @classmethod
    def of(cls, values: Tensor, lengths: Tensor | None) -> "Side":
        """Take sets as they are, or copy them if vector loads cannot reach them."""
        aligned = values.stride(2) == 1 and values.data_ptr() % 16 == 0
        if not aligned or values.stride(0) % VECTOR or values.stride(1) % VECTOR:
            values = values.clone(memory_format=torch.contiguous_format)
        return cls(values, None if lengths is None else lengths.to(torch.int64).contiguous())

    def __getitem__(self, sets: slice) -> "Side":
        """Some of the sets."""
        return Side(self.values[sets], None if self.lengths is None else self.lengths[sets])

    @property
    def count(self) -> int:
        """Number of sets."""
        return self.values.shape[0]

    @property
    def size(self) -> int:
        """Number of elements of the largest set."""
        return self.values.shape[1]

    @property
    def ragged(self) -> bool:
        """Whether some sets may be smaller."""
        return self.lengths is not None

    @property
    def strides(self) -> tuple[int, int]:
        """Steps to the next set and to the next element, in vectors."""
        return self.values.stride(0) // VECTOR, self.values.stride(1) // VECTOR


def problem(
    rows: Side,
    columns: Side,
    alpha: float | Tensor,
    similarity: str = SMOOTH_CHAMFER,
    query_rows: bool = True,
) -> Problem:
    """Describe a launch; `query_rows`: the row sets are the queries, where that matters."""
    device = rows.values.device
    return Problem(
        arch=family(None if INTERPRETED else torch.cuda.get_device_capability(device)),
        dtype=rows.values.dtype,
        dims=rows.values.shape[2],
        row_sets=rows.count,
        row_size=rows.size,
        column_sets=columns.count,
        column_size=columns.size,
        alpha=None if isinstance(alpha, Tensor) else alpha,
        row_ragged=rows.ragged,
        column_ragged=columns.ragged,
        similarity=similarity,
        query_rows=query_rows or similarity not in ONE_SIDED,
    )


def on_device(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Make the tensors' device current: Triton launches on the current device's stream."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
