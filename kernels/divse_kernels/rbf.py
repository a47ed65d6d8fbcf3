"""The mean of exp(-|x - y| / 2) over all pairs of elements, and its gradients, tile by tile.

No distance is stored: forward, each tile leaves a sum; backward, chunks of weights are multiplied
with the elements (products.py). With d = |x_i - y_j|,

    d exp(-d / 2) / d x_i = W_ij (y_j - x_i),    W_ij = exp(-d / 2) / (2 d)

so the gradient for x is W @ y less the row sums of W times x. The sums are those of the weights as
they are stored, in half precision: what they were rounded by does not grow where y is near x.

Squared distances are |x|^2 + |y|^2 - 2 x.y, as `torch.cdist` has them: what falls below `NOISE` of
the largest |x|^2 is rounding, and counts as no distance, whose gradient is 0.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from divse_kernels.launch import Side, launches, on_device, problem
from divse_kernels.problem import Problem
from divse_kernels.products import Chunk, weighted_sums
from divse_kernels.smooth_chamfer_forward import tile_of_program
from divse_kernels.tiles import LOG2_E, cosine_tile
from divse_kernels.tuning import ROW_GROUP, Tile, rbf_tile

NOISE = 2.0**-18
#: Largest weight in float16, whose smallest are 2 ** -24.
LARGEST = 1024.0


@triton.jit
def tile_distances(
    row_ptr,  # [P, D]
    column_ptr,  # [Q, D]
    row_square_ptr,  # [P] float32
    column_square_ptr,  # [Q] float32
    noise_ptr,  # [] float32: squared distances up to it are none
    first_row,
    end_row,
    first_column,
    end_column,
    stride_row,  # in units of 8 values
    stride_column,
    D,
    SAME: tl.constexpr,  # rows and columns are the same elements
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EVEN_D: tl.constexpr,
):
    """Distances and their exp(-d / 2) `[BLOCK_M, BLOCK_N]`, which of them are inside the ends."""
    m = first_row + tl.arange(0, BLOCK_M)
    n = first_column + tl.arange(0, BLOCK_N)
    row = tl.minimum(m, end_row - 1)
    column = tl.minimum(n, end_column - 1)
    products = cosine_tile(
        row_ptr,
        row.to(tl.int64) * stride_row * 8,
        column_ptr,
        column.to(tl.int64) * stride_column * 8,
        D,
        BLOCK_M,
        BLOCK_N,
        BLOCK_D,
        EVEN_D,
    )
    row_squares = tl.load(row_square_ptr + row)
    column_squares = tl.load(column_square_ptr + column)
    squares = row_squares[:, None] + column_squares[None, :] - 2.0 * products
    none = squares <= tl.load(noise_ptr)
    if SAME:
        none = none | (m[:, None] == n[None, :])
    distances = tl.sqrt(tl.where(none, 0.0, squares))
    inside = (m < end_row)[:, None] & (n < end_column)[None, :]
    return distances, tl.exp2(distances * (-0.5 * LOG2_E)), inside


@triton.jit
def rbf_sums(
    row_ptr,
    column_ptr,
    row_square_ptr,
    column_square_ptr,
    noise_ptr,
    sum_ptr,  # [tiles] float32
    ROWS,
    COLUMNS,
    stride_row,
    stride_column,
    D,
    SAME: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EVEN_D: tl.constexpr,
    GROUP: tl.constexpr,
):
    """The sum of exp(-d / 2) over one tile."""
    tile_m, tile_n = tile_of_program(tl.cdiv(ROWS, BLOCK_M), tl.cdiv(COLUMNS, BLOCK_N), GROUP)
    _, values, inside = tile_distances(
        row_ptr,
        column_ptr,
        row_square_ptr,
        column_square_ptr,
        noise_ptr,
        tile_m * BLOCK_M,
        ROWS,
        tile_n * BLOCK_N,
        COLUMNS,
        stride_row,
        stride_column,
        D,
        SAME,
        BLOCK_M,
        BLOCK_N,
        BLOCK_D,
        EVEN_D,
    )
    total = tl.sum(tl.sum(tl.where(inside, values, 0.0), axis=1))
    tl.store(sum_ptr + tl.program_id(0), total)


@triton.jit
def rbf_weights(
    row_ptr,
    column_ptr,
    row_square_ptr,
    column_square_ptr,
    noise_ptr,
    scale_ptr,  # [] float32, multiplies the weights; or None
    weight_ptr,  # [rows, stride_weight], of the elements from first_row and first_column on
    row_sum_ptr,  # [column tiles, row tiles * BLOCK_M] float32
    column_sum_ptr,  # [row tiles, column tiles * BLOCK_N] float32
    first_row,
    end_row,
    first_column,
    end_column,
    stride_row,
    stride_column,
    stride_weight,
    D,
    SAME: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EVEN_D: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One tile of weights, and their sums along its rows and its columns."""
    M_TILES = tl.cdiv(end_row - first_row, BLOCK_M)
    N_TILES = tl.cdiv(end_column - first_column, BLOCK_N)
    tile_m, tile_n = tile_of_program(M_TILES, N_TILES, GROUP)
    distances, values, inside = tile_distances(
        row_ptr,
        column_ptr,
        row_square_ptr,
        column_square_ptr,
        noise_ptr,
        first_row + tile_m * BLOCK_M,
        end_row,
        first_column + tile_n * BLOCK_N,
        end_column,
        stride_row,
        stride_column,
        D,
        SAME,
        BLOCK_M,
        BLOCK_N,
        BLOCK_D,
        EVEN_D,
    )
    apart = inside & (distances > 0.0)
    weights = tl.where(apart, 0.5 * values / tl.where(apart, distances, 1.0), 0.0)
    if scale_ptr is not None:
        weights *= tl.load(scale_ptr)
    weights = weights.to(weight_ptr.dtype.element_ty)
    m, n = tile_m * BLOCK_M + tl.arange(0, BLOCK_M), tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    offsets = m.to(tl.int64)[:, None] * stride_weight + n[None, :]
    tl.store(weight_ptr + offsets, weights, mask=inside)
    stored = weights.to(tl.float32)
    row_sum_ptr += tile_n.to(tl.int64) * M_TILES * BLOCK_M
    tl.store(row_sum_ptr + m, tl.sum(stored, axis=1))
    column_sum_ptr += tile_m.to(tl.int64) * N_TILES * BLOCK_N
    tl.store(column_sum_ptr + n, tl.sum(stored, axis=0))


def constants(task: Problem, tile: Tile, same: bool) -> dict[str, int | bool]:
    """Compile-time arguments of both kernels."""
    return {
        "SAME": same,
        **tile.constants,
        "EVEN_D": task.dims % tile.block_d == 0,
        **ROW_GROUP,
    }


class Pairs:
    """Two lots of elements, (P, D) and (Q, D), and what the kernels need of them."""

    def __init__(self, x: Tensor, y: Tensor | None) -> None:
        self.same = y is None
        self.rows = Side.of(x[:, None], None)
        self.columns = self.rows if y is None else Side.of(y[:, None], None)
        self.task = problem(self.rows, self.columns, 1.0)
        self.tile = rbf_tile(self.task)
        squares = [norms(side).square() for side in (self.rows, self.columns)]
        self.noise = NOISE * torch.maximum(*(s.max() for s in squares))
        self.pointers = (self.rows.values, self.columns.values, *squares, self.noise)
        self.strides = self.rows.strides[0], self.columns.strides[0]

    def launch(
        self, kernel: triton.JITFunction, rows: int, columns: int, *arguments: object
    ) -> None:
        """Launch a kernel over so many rows and columns."""
        tile = self.tile
        programs = triton.cdiv(rows, tile.block_m) * triton.cdiv(columns, tile.block_n)
        launches[kernel.__name__] += 1
        with on_device(self.noise.device):
            kernel[(programs,)](
                *self.pointers,
                *arguments,
                self.task.dims,
                **constants(self.task, tile, self.same),
                **tile.options,
            )

    def mean(self) -> Tensor:
        """The mean (), float32."""
        rows, columns, tile = self.task.rows, self.task.columns, self.tile
        tiles = triton.cdiv(rows, tile.block_m) * triton.cdiv(columns, tile.block_n)
        sums = self.noise.new_empty(tiles)
        self.launch(rbf_sums, rows, columns, sums, rows, columns, *self.strides)
        return (sums.sum(dtype=torch.float64) / (rows * columns)).float()

    def gradients(self, grad: Tensor, wanted: tuple[bool, bool]) -> list[Tensor | None]:
        """Gradients (P, D) and (Q, D) in the elements' type, where wanted; of () `grad`."""
        fill = _Weights(self)
        wanted = (wanted[0], wanted[1] and not self.same)
        products = weighted_sums(self.rows, self.columns, fill, wanted, fill.scale)
        factor = grad / (self.task.rows * self.task.columns) * (2 if self.same else 1)
        sums = (fill.row_sums, fill.column_sums)
        grads: list[Tensor | None] = []
        for side, product, total in zip((self.rows, self.columns), products, sums, strict=True):
            if product is not None:
                total = total if fill.scale is None else total / fill.scale
                product = product.addcmul_(total[:, None], side.values[:, 0].float(), value=-1)
                product = product.mul_(factor).to(side.values.dtype)
            grads.append(product)
        return grads


class _Weights:
    """Fill chunks with weights, and sum them along rows and columns."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs
        self.scale = None
        if pairs.task.dtype != torch.float32:  # the largest weight is that of the least distance
            self.scale = (2 * LARGEST * pairs.noise.sqrt()).clamp_min(1e-30)
        self.row_sums = pairs.noise.new_zeros(pairs.task.rows)
        self.column_sums = pairs.noise.new_zeros(pairs.task.columns)

    def __call__(self, chunk: Chunk) -> None:
        tile, (rows, columns) = self.pairs.tile, chunk.weights.shape
        row_tiles, column_tiles = (
            triton.cdiv(rows, tile.block_m),
            triton.cdiv(columns, tile.block_n),
        )
        of_rows = self.row_sums.new_empty(column_tiles, row_tiles * tile.block_m)
        of_columns = self.row_sums.new_empty(row_tiles, column_tiles * tile.block_n)
        ends = (chunk.first_row, chunk.end_row, chunk.first_column, chunk.end_column)
        places = (*ends, *self.pairs.strides, chunk.weights.stride(0))
        outputs = (self.scale, chunk.weights, of_rows, of_columns)
        self.pairs.launch(rbf_weights, rows, columns, *outputs, *places)
        self.row_sums[chunk.first_row : chunk.end_row] += of_rows.sum(0)[:rows]
        self.column_sums[chunk.first_column : chunk.end_column] += of_columns.sum(0)[:columns]


def norms(side: Side) -> Tensor:
    """Norms (count,) of single elements, in float32."""
    return torch.linalg.vector_norm(side.values[:, 0], dim=1, dtype=torch.float32)
