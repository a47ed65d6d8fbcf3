"""Gradients of elements as products of weights and elements, a bounded chunk of weights at a time.

A kernel writes the weights of some row sets x some column sets; cuBLAS multiplies them with the
columns and, transposed, with the rows. So both gradients cost three products of the size of the
scores: the cosines again, and these two. Chunks follow each other in one order and are added in
float32: the result repeats bit for bit.

Half-precision elements are multiplied in float16, bfloat16 too: scaled by a power of two they fit,
and the weights keep 3 bits more than bfloat16 has. Where sets are nearly equal and weights cancel,
a gradient is far smaller than what rounding the weights does to it. But then that is, nearly, what
each row of weights has lost in sum times the mean element, so this product of a column and a row is
added: it costs no pass over the weights, and leaves of the rounding what meets elements less their
mean.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from divse_kernels.launch import Side

#: Bytes of weights in memory at one time; larger chunks need fewer passes over the gradients.
WORKSPACE = 256 << 20

#: Bytes that an operand in float32 takes at one time, where torch cannot multiply it as it is.
UPCAST = 64 << 20
#: Whether torch multiplies float16 into float32 on a GPU: since 2.8.
WIDE_OUTPUT = "dtype" in torch.ops.aten.mm.overloads()

#: Whether gradients are wanted for the rows and for the columns.
Wanted = tuple[bool, bool]
#: What rounding took of the weights of a chunk, in sum along its rows and along its columns.
Lost = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Chunk:
    """Weights of the row sets [first_row, end_row) x the column sets [first_column, end_column)."""

    first_row: int
    end_row: int
    first_column: int
    end_column: int
    weights: Tensor  # (row sets * row size, column sets * column size)


def weights_type(values: Tensor) -> torch.dtype:
    """The type that weights have and elements are multiplied in."""
    return torch.float32 if values.dtype == torch.float32 else torch.float16


def chunk_sides(rows: int, columns: int, most: int) -> tuple[int, int]:
    """Rows and columns of a chunk of at most so many weights, near to a square: both gradients are
    read and written once for each chunk."""
    width = min(columns, max(int(most**0.5), most // rows))
    return min(rows, most // width), width


def chunks(rows: Side, columns: Side) -> Iterator[Chunk]:
    """All pairs of sets, chunk by chunk, in one workspace."""
    kind = weights_type(rows.values)
    k, size = rows.values.shape[1], columns.values.shape[1]
    height, width = chunk_sides(
        rows.count * k, columns.count * size, max(WORKSPACE // kind.itemsize, 64 * 64)
    )
    row_step, column_step = max(1, height // k), max(1, width // size)
    stride = -(-column_step * size // 8) * 8  # cuBLAS is fast where rows start at 16 bytes
    workspace = rows.values.new_empty(row_step * k, stride, dtype=kind)
    for first_row in range(0, rows.count, row_step):
        end_row = min(first_row + row_step, rows.count)
        for first_column in range(0, columns.count, column_step):
            end_column = min(first_column + column_step, columns.count)
            used = workspace[: (end_row - first_row) * k, : (end_column - first_column) * size]
            yield Chunk(first_row, end_row, first_column, end_column, used)


@contextlib.contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Products of float32 that neither TF32 nor autocast rounds."""
    kind = "cuda" if device.type == "cuda" else "cpu"
    with tensor_float(False), torch.autocast(kind, enabled=False):
        yield


@contextlib.contextmanager
def tensor_float(allowed: bool) -> Iterator[None]:
    """Whether a GPU may round operands in float32 to TF32."""
    matmul = torch.backends.cuda.matmul
    name, value = ("allow_tf32", allowed)
    if _NEW_SWITCH:
        name, value = "fp32_precision", "tf32" if allowed else "ieee"
    before = getattr(matmul, name)
    setattr(matmul, name, value)
    try:
        yield
    finally:
        setattr(matmul, name, before)


_NEW_SWITCH = hasattr(torch.backends.cuda.matmul, "fp32_precision")


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32, accumulated in float32."""
    if a.dtype == torch.float32:
        return a @ b
    if a.device.type == "cuda" and WIDE_OUTPUT:
        return torch.mm(a, b, out_dtype=torch.float32)
    return product_of_upcast(a, b)


def product_of_upcast(a: Tensor, b: Tensor) -> Tensor:
    """The same of float16 operands in float32, some rows of `a` at a time.

    TF32 holds every float16, so nothing is rounded, and tensor cores multiply at half their rate.
    """
    b = b.float()
    rows = max(1, UPCAST // 4 // max(1, a.shape[1]))
    result = b.new_empty(a.shape[0], b.shape[1])
    with tensor_float(True):
        for start in range(0, a.shape[0], rows):
            part = a[start : start + rows].float()
            torch.mm(part, b, out=result[start : start + rows])
    return result


def operand(side: Side, kind: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Elements (count * size, D) as `kind`, 0 in padding, and what they were multiplied by."""
    values = side.values
    if side.lengths is not None:
        inside = torch.arange(values.shape[1], device=values.device) < side.lengths[:, None]
        values = values.where(inside[..., None], 0)
    values = values.reshape(-1, values.shape[2])
    if values.dtype == kind:
        return values, None
    largest = torch.linalg.vector_norm(values, torch.inf).float()
    scale = torch.exp2(-torch.frexp(largest).exponent).to(values.dtype)
    return torch.mul(values, scale, out=torch.empty_like(values, dtype=kind)), scale


class Gradient:
    """Sums of weights @ elements, for one side."""

    def __init__(self, receiving: Side, giving: Side, kind: torch.dtype) -> None:
        count, self.size, dims = receiving.values.shape
        self.elements, self.scale = operand(giving, kind)
        self.giving, self.giving_size = giving, giving.values.shape[1]
        self.sums = self.elements.new_empty(count * self.size, dims, dtype=torch.float32)
        self.touched = 0  # rows that hold sums already
        self.lost: Tensor | None = None  # (count * size,)

    def add(self, weights: Tensor, first: int, first_giving: int, lost: Tensor | None) -> None:
        """Add the product of weights (sets * size, giving sets * size) that start at these sets.

        `lost` (sets * size,) is what rounding took of each row of weights, if that is known.
        """
        start = first * self.size
        end = start + weights.shape[0]
        begin = first_giving * self.giving_size
        product = multiply(weights, self.elements[begin : begin + weights.shape[1]])
        if end > self.touched:
            self.sums[start:end] = product
            self.touched = end
        else:
            self.sums[start:end] += product
        if lost is not None:
            if self.lost is None:
                self.lost = self.sums.new_zeros(len(self.sums))
            self.lost[start:end] += lost

    def mean(self) -> Tensor:
        """The mean element (D,) of the giving side, as it is multiplied."""
        lengths = self.giving.lengths
        count = len(self.elements) if lengths is None else lengths.sum()
        return self.elements.sum(0, dtype=torch.float32) / count

    def result(self, scale: Tensor | None) -> Tensor:
        """The sums (count * size, D), float32, without what weights were multiplied by."""
        if self.lost is not None:
            self.sums.addr_(self.lost, self.mean())
        scales = [x.float() for x in (self.scale, scale) if x is not None]
        return self.sums.div_(torch.stack(scales).prod()) if scales else self.sums


def weighted_sums(
    rows: Side,
    columns: Side,
    fill: Callable[[Chunk], Lost | None],
    wanted: Wanted,
    scale: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Weights @ columns and weights.T @ rows, each (elements, D) float32, where wanted.

    `fill` writes the weights of a chunk, times `scale` if there is one, and may say what they lost.
    """
    kind = weights_type(rows.values)
    for_rows = Gradient(rows, columns, kind) if wanted[0] else None
    for_columns = Gradient(columns, rows, kind) if wanted[1] else None
    with exact_products(rows.values.device):
        for chunk in chunks(rows, columns):
            of_rows, of_columns = fill(chunk) or (None, None)
            if for_rows:
                for_rows.add(chunk.weights, chunk.first_row, chunk.first_column, of_rows)
            if for_columns:
                for_columns.add(chunk.weights.mT, chunk.first_column, chunk.first_row, of_columns)
    return for_rows and for_rows.result(scale), for_columns and for_columns.result(scale)
