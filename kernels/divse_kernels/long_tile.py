"""What the kernels of long sets share: packed sets, blocks of a column set, and who lies where.

A program has a tile of rows, whole short sets or a part of a long one, and walks over a column set
block by block. Rows keep what they need between blocks (their best cosine, a sum of exponentials);
columns need their whole row set in one tile. So a similarity takes one or two passes:

    one direction           MaxSim: rows are the queries, whatever their size
    both, in one pass       a side of at most 128 elements lies along the rows
    both, in two passes     the second with the sides exchanged
"""

from dataclasses import dataclass
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from divse_kernels.launch import Side, problem
from divse_kernels.problem import ONE_SIDED, Problem
from divse_kernels.tiles import MIXED_SCALE, cosine_tile, dot_of_elements
from divse_kernels.tuning import PROCESSORS, Tile

LONGEST = 1024
WHOLE = 128  # elements that fit in the rows of every tile of long sets
SHORT = 32
WALKED = 4096  # elements that a program walks over, if sets are short and many


@dataclass(frozen=True)
class PackedSide(Side):
    """Sets one after the other without padding: values (1, total, D), set n from starts[n]."""

    starts: Tensor  # (count + 1,) int64
    longest: int

    @property
    def count(self) -> int:
        """Number of sets."""
        return len(self.starts) - 1

    @property
    def size(self) -> int:
        """Number of elements of the largest set."""
        return self.longest

    @property
    def ragged(self) -> bool:
        """Whether some sets may be smaller."""
        return True


@triton.jit
def extent(starts_ptr, lengths_ptr, sets, stride_set, stride_element, SIZE, RAGGED: tl.constexpr):
    """Where sets begin, in units of 8 values, and how many elements they have."""
    if starts_ptr is not None:
        start = tl.load(starts_ptr + sets)
        return start * stride_element, (tl.load(starts_ptr + sets + 1) - start).to(tl.int32)
    elif RAGGED:
        return sets.to(tl.int64) * stride_set, tl.load(lengths_ptr + sets).to(tl.int32)
    else:
        return sets.to(tl.int64) * stride_set, (sets * 0 + SIZE).to(tl.int32)


@triton.jit
def load_elements(ptr, offsets, D, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr):
    """Whole elements at the given offsets, `[len(offsets), BLOCK_D]`."""
    dims = tl.arange(0, BLOCK_D)
    ptrs = ptr + offsets[:, None] + dims[None, :]
    if EVEN_D:
        return tl.load(ptrs)
    else:
        return tl.load(ptrs, mask=dims[None, :] < D, other=0.0)


@triton.jit
def resident_rows(
    row_ptr, row_offsets, D, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr, RESIDENT: tl.constexpr
):
    """The rows of a tile, `[BLOCK_M, BLOCK_D]`, where BLOCK_D holds D; otherwise their offsets."""
    if RESIDENT:
        return load_elements(row_ptr, row_offsets, D, BLOCK_D, EVEN_D)
    else:
        return row_offsets


@triton.jit
def block_cosines(
    row_ptr,
    row_offsets,  # [BLOCK_M]
    rows,  # what `resident_rows` gave
    column_ptr,
    first,  # of the column set, in units of 8 values
    elements,  # [BLOCK_N] in bounds
    stride_element,
    D,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EVEN_D: tl.constexpr,
    RESIDENT: tl.constexpr,
):
    """Cosines `[BLOCK_M, BLOCK_N]` of the rows with some elements of one column set."""
    offsets = (first + elements.to(tl.int64) * stride_element) * 8
    if RESIDENT:
        columns = load_elements(column_ptr, offsets, D, BLOCK_D, EVEN_D)
        x = dot_of_elements(rows, columns, tl.zeros((BLOCK_M, BLOCK_N), tl.float32))
        return x if rows.dtype == columns.dtype else x * (1.0 / MIXED_SCALE)
    else:
        return cosine_tile(
            row_ptr, row_offsets, column_ptr, offsets, D, BLOCK_M, BLOCK_N, BLOCK_D, EVEN_D
        )


class Pass(NamedTuple):
    """A launch: who lies along the rows, and whether rows and columns look for their best."""

    gallery_rows: bool
    rows: bool
    columns: bool

    @property
    def turned(self) -> "Pass":
        """The same direction seen from the other side."""
        return self._replace(gallery_rows=not self.gallery_rows)


def passes(queries: Side, gallery: Side, similarity: str) -> tuple[Pass, ...]:
    """The launches that a similarity of all pairs takes."""
    longer = queries.size > gallery.size
    if similarity in ONE_SIDED:
        # Many short sets would each leave most of a block of columns empty.
        if gallery.size <= SHORT < queries.size:
            return (Pass(True, rows=False, columns=True),)
        return (Pass(False, rows=True, columns=False),)
    if similarity == "mil":
        return (Pass(longer, rows=True, columns=False),)
    if min(queries.size, gallery.size) <= _whole(queries, gallery):
        return (Pass(longer, rows=True, columns=True),)
    return tuple(Pass(turn, rows=True, columns=False) for turn in (False, True))


def _whole(queries: Side, gallery: Side) -> int:
    """Elements of a side that lies along the rows for both directions in one pass.

    On Blackwell a thread holds one row, and a second product costs less than all the shuffles of
    sums over rows; only blocks of few elements would cost more.
    """
    return SHORT if problem(queries, gallery, 1.0).arch == "blackwell" else WHOLE


def column_sets_a_program(task: Problem, m_tiles: int) -> int:
    """So many that rows are seldom read for a short set, and that programs fill the device."""
    walk = min(32, WALKED // task.column_size)
    return max(1, min(walk, task.column_sets * m_tiles // (8 * PROCESSORS[task.arch])))


def tile_constants(task: Problem, tile: Tile, k2: int) -> dict[str, int | bool | str]:
    """Compile-time arguments that every walk over columns takes; `k2` rows are one row set's."""
    return {
        **tile.constants,
        **tile.row_order(k2),
        "K2": k2,
        "SIMILARITY": task.similarity,
        "ROW_RAGGED": task.row_ragged,
        "COLUMN_RAGGED": task.column_ragged,
        "ROW_PADDING": task.row_ragged or task.row_size % k2 != 0,
        "COLUMN_PADDING": task.column_ragged or task.column_size % tile.block_n != 0,
        "ALPHA_ON_DEVICE": task.alpha is None,
        "EVEN_D": task.dims % tile.block_d == 0,
        "RESIDENT": task.dims <= tile.block_d,
    }
