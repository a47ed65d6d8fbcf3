"""Log-sum-exps and maxima of the scores of every row set and column set, in one pass of the tiles.

The scores are never stored. Each tile leaves both for each of its rows and columns (a log-sum-exp
starts at the maximum, so that costs nothing); rows are taken in bands, so that what tiles leave
stays within `PARTIALS` whatever the number of sets, and torch merges a band before the next one. No
atomics: the result repeats bit for bit.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from divse_kernels import score_tile
from divse_kernels.launch import Side, launches, on_device, problem
from divse_kernels.problem import SMOOTH_CHAMFER, Problem, padded
from divse_kernels.score_tile import tile_scores
from divse_kernels.smooth_chamfer_forward import tile_of_program
from divse_kernels.tiles import LN_2, LOG2_E, log2
from divse_kernels.tuning import ROW_GROUP, Tile, lse_tile

#: Bytes that the tiles of a band leave.
PARTIALS = 64 << 20


@triton.jit
def log_sum_exp(x, AXIS: tl.constexpr):
    """Log2 of the sum of 2 ** x over AXIS, and the largest x; both -inf where all of x is."""
    largest = tl.max(x, axis=AXIS)
    top = tl.where(largest == float("-inf"), 0.0, largest)
    sums = tl.sum(tl.exp2(x - tl.expand_dims(top, AXIS)), axis=AXIS)
    empty = sums == 0.0
    return tl.where(empty, float("-inf"), top + log2(tl.where(empty, 1.0, sums))), largest


@triton.jit
def store_both(pair, ptr, places, step, mask):
    """Store log-sum-exps, and a step further maxima, of natural logarithms."""
    tl.store(ptr + places, pair[0] * LN_2, mask=mask)
    tl.store(ptr + step + places, pair[1] * LN_2, mask=mask)


@triton.jit
def row_column_lse(
    row_ptr,  # [ROW_SETS, K, D]
    column_ptr,  # [COLUMN_SETS, L, D]
    row_groups_ptr,  # [ROW_SETS] int64
    column_groups_ptr,  # [COLUMN_SETS] int64
    row_partial_ptr,  # [column tiles, 2, rows of the band] float32: log-sum-exps, maxima
    column_partial_ptr,  # [row tiles of the band, 2, COLUMN_SETS] float32
    row_lengths_ptr,  # [ROW_SETS] int64, or None
    column_lengths_ptr,  # [COLUMN_SETS] int64, or None
    alpha,  # float, or a pointer to one
    inverse_temperature,
    D,
    first_tile,  # of the band
    end_tile,
    ROW_SETS,
    COLUMN_SETS,
    stride_row_set,  # strides of the inputs in units of 8 values
    stride_row_element,
    stride_column_set,
    stride_column_element,
    K: tl.constexpr,
    L: tl.constexpr,
    K2: tl.constexpr,
    L2: tl.constexpr,
    FACTORS: tl.constexpr,
    LOG_MEAN: tl.constexpr,
    ROW_RAGGED: tl.constexpr,
    COLUMN_RAGGED: tl.constexpr,
    ALPHA_ON_DEVICE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EVEN_D: tl.constexpr,
    GROUP: tl.constexpr,
    POLYNOMIAL: tl.constexpr,
    OUTER: tl.constexpr,
    PAIR: tl.constexpr,
    LANE: tl.constexpr,
    SIMILARITY: tl.constexpr,
    QUERY_ROWS: tl.constexpr,
):
    """Log-sum-exps and maxima over one tile of scores, `[M_SETS, N_SETS]`, along both axes."""
    M_SETS: tl.constexpr = BLOCK_M // K2
    N_SETS: tl.constexpr = BLOCK_N // L2
    M_TILES = end_tile - first_tile
    tile_m, tile_n = tile_of_program(M_TILES, tl.cdiv(COLUMN_SETS, N_SETS), GROUP)
    first_row = (first_tile + tile_m) * M_SETS
    scores = tile_scores(
        row_ptr,
        None,
        row_lengths_ptr,
        first_row,
        ROW_SETS,
        stride_row_set,
        stride_row_element,
        column_ptr,
        None,
        column_lengths_ptr,
        tile_n * N_SETS,
        COLUMN_SETS,
        stride_column_set,
        stride_column_element,
        alpha,
        D,
        K,
        L,
        K2,
        L2,
        FACTORS,
        LOG_MEAN,
        ROW_RAGGED,
        COLUMN_RAGGED,
        ALPHA_ON_DEVICE,
        BLOCK_M,
        BLOCK_N,
        BLOCK_D,
        EVEN_D,
        POLYNOMIAL,
        OUTER,
        PAIR,
        LANE,
        SIMILARITY,
        QUERY_ROWS,
    )
    m = first_row + tl.arange(0, M_SETS)
    n = tile_n * N_SETS + tl.arange(0, N_SETS)
    row_exists = m < ROW_SETS
    column_exists = n < COLUMN_SETS
    row_groups = tl.load(row_groups_ptr + m, mask=row_exists, other=0)
    column_groups = tl.load(column_groups_ptr + n, mask=column_exists, other=0)
    negative = row_groups[:, None] != column_groups[None, :]
    negative = negative & row_exists[:, None] & column_exists[None, :]
    x = tl.where(negative, scores * (inverse_temperature * LOG2_E), float("-inf"))
    row_in_band = tile_m * M_SETS + tl.arange(0, M_SETS)
    row_partial_ptr += tile_n.to(tl.int64) * 2 * (M_TILES * M_SETS)
    store_both(log_sum_exp(x, 1), row_partial_ptr, row_in_band, M_TILES * M_SETS, None)
    column_partial_ptr += tile_m.to(tl.int64) * 2 * COLUMN_SETS
    store_both(log_sum_exp(x, 0), column_partial_ptr, n, COLUMN_SETS, column_exists)


def constants(task: Problem, tile: Tile, log_mean: bool) -> dict[str, int | bool | str]:
    """Compile-time arguments of the kernel."""
    return score_tile.constants(task, tile, log_mean) | ROW_GROUP


def band_tiles(row_tiles: int, m_sets: int, column_tiles: int, column_sets: int) -> int:
    """Row tiles of a band."""
    return min(row_tiles, max(1, PARTIALS // 8 // (column_tiles * m_sets + column_sets)))


def log_sum_exps(
    queries: Side,
    gallery: Side,
    query_groups: Tensor,
    gallery_groups: Tensor,
    temperature: float,
    alpha: float | Tensor,
    log_mean: bool,
    similarity: str = SMOOTH_CHAMFER,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch the kernel: logsumexp(scores / temperature) of each query (B,) and gallery set (N,).

    After these the largest scores, (B,) and (N,). Groups are (B,) and (N,) int64: pairs of one
    group do not count; -inf where none is left.
    """
    sides = ((queries, query_groups), (gallery, gallery_groups))
    if queries.count == 0 or gallery.count == 0:
        shape = {"dtype": torch.float32}
        return tuple(s.values.new_full((s.count,), -torch.inf, **shape) for s, _ in sides * 2)
    # Tiles are tall, so the larger side goes along the rows.
    task, order = problem(queries, gallery, alpha, similarity), (0, 1)
    if task.rows < task.columns:
        task, order = problem(gallery, queries, alpha, similarity, query_rows=False), (1, 0)
    found = _by_bands(task, *(sides[i] for i in order), temperature, alpha, log_mean)
    lse, largest = ([pair[i] for i in order] for pair in found)
    return *lse, *(x * temperature for x in largest)


def _by_bands(
    task: Problem,
    rows: tuple[Side, Tensor],
    columns: tuple[Side, Tensor],
    temperature: float,
    alpha: float | Tensor,
    log_mean: bool,
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Sides and their groups -> of row sets and of column sets, log-sum-exps and then maxima."""
    (row_side, row_groups), (column_side, column_groups) = rows, columns
    tile = lse_tile(task)
    m_sets = tile.block_m // padded(task.row_size)
    row_tiles = triton.cdiv(task.rows, tile.block_m)
    column_tiles = triton.cdiv(task.columns, tile.block_n)
    step = band_tiles(row_tiles, m_sets, column_tiles, task.column_sets)
    empty = row_side.values.new_empty
    of_rows = empty(2, row_tiles * m_sets, dtype=torch.float32)
    of_columns = torch.full_like(of_rows[:, :1], -torch.inf).expand(2, task.column_sets)
    for first in range(0, row_tiles, step):
        count = min(step, row_tiles - first)
        row_partials = empty(column_tiles, 2, count * m_sets, dtype=torch.float32)
        column_partials = empty(count, 2, task.column_sets, dtype=torch.float32)
        launches["row_column_lse"] += 1
        with on_device(row_side.values.device):
            row_column_lse[(count * column_tiles,)](
                row_side.values,
                column_side.values,
                row_groups.contiguous(),
                column_groups.contiguous(),
                row_partials,
                column_partials,
                row_side.lengths,
                column_side.lengths,
                alpha,
                1.0 / temperature,
                task.dims,
                first,
                first + count,
                task.row_sets,
                task.column_sets,
                *row_side.strides,
                *column_side.strides,
                **constants(task, tile, log_mean),
                **tile.options,
            )
        of_rows[:, first * m_sets : (first + count) * m_sets] = _merged(row_partials)
        of_columns = _merged(torch.cat([of_columns[None], _merged(column_partials)[None]]))
    return tuple(zip(of_rows[:, : task.row_sets], of_columns, strict=True))


def _merged(partials: Tensor) -> Tensor:
    """Log-sum-exps and maxima (tiles, 2, sets) over all tiles, (2, sets)."""
    return torch.stack([partials[:, 0].logsumexp(0), partials[:, 1].amax(0)])
