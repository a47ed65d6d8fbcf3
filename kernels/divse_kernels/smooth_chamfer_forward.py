"""All-pairs scores, by any similarity, in one pass over the tiles of the cosine matrix.

Either side may lie along the rows. Memory holds the two inputs and the scores, nothing else. A
program has one tile, or, persistent, goes from tile to tile: then the first loads of the next tile
are under way while the scores of this one are computed.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from divse_kernels import score_tile
from divse_kernels.launch import Side, launches, on_device, problem
from divse_kernels.problem import SMOOTH_CHAMFER, Problem
from divse_kernels.score_tile import tile_scores
from divse_kernels.tiles import bound
from divse_kernels.tuning import PROCESSORS, ROW_GROUP, Tile, scores_tile


@triton.jit
def place_of_tile(tile, M_TILES, N_TILES, GROUP: tl.constexpr):
    """Row and column of a tile by its number; GROUP rows of tiles share columns in the L2 cache."""
    group = tile // (GROUP * N_TILES)
    rows = min(M_TILES - group * GROUP, GROUP)
    within = tile % (GROUP * N_TILES)
    return group * GROUP + within % rows, within // rows


@triton.jit
def tile_of_program(M_TILES, N_TILES, GROUP: tl.constexpr):
    """Row and column of this program's tile, where each program has one."""
    return place_of_tile(tl.program_id(0), M_TILES, N_TILES, GROUP)


@triton.jit
def store_tile(
    tile,
    row_ptr,
    column_ptr,
    score_ptr,
    row_lengths_ptr,
    column_lengths_ptr,
    alpha,
    D,
    ROW_SETS,
    COLUMN_SETS,
    stride_row_set,
    stride_row_element,
    stride_column_set,
    stride_column_element,
    stride_score_row,
    stride_score_column,
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
    """Compute and store the scores of one tile, `[M_SETS, N_SETS]`; arguments as below."""
    M_SETS: tl.constexpr = BLOCK_M // K2
    N_SETS: tl.constexpr = BLOCK_N // L2
    tile_m, tile_n = place_of_tile(
        tile, tl.cdiv(ROW_SETS, M_SETS), tl.cdiv(COLUMN_SETS, N_SETS), GROUP
    )
    scores = tile_scores(
        row_ptr,
        None,
        row_lengths_ptr,
        tile_m * M_SETS,
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
    m = tile_m * M_SETS + tl.arange(0, M_SETS)
    n = tile_n * N_SETS + tl.arange(0, N_SETS)
    offsets = (
        m.to(tl.int64)[:, None] * stride_score_row + n.to(tl.int64)[None, :] * stride_score_column
    )
    tl.store(score_ptr + offsets, scores, mask=(m < ROW_SETS)[:, None] & (n < COLUMN_SETS)[None, :])


@triton.jit
def smooth_chamfer_forward(
    row_ptr,  # [ROW_SETS, K, D]
    column_ptr,  # [COLUMN_SETS, L, D]
    score_ptr,  # [ROW_SETS, COLUMN_SETS] float32
    row_lengths_ptr,  # [ROW_SETS] int64, or None
    column_lengths_ptr,  # [COLUMN_SETS] int64, or None
    alpha,  # float, or a pointer to one
    D,
    ROW_SETS,
    COLUMN_SETS,
    stride_row_set,  # strides of the inputs in units of 8 values
    stride_row_element,
    stride_column_set,
    stride_column_element,
    stride_score_row,
    stride_score_column,
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
    PERSISTENT: tl.constexpr,  # a program goes from tile to tile, and loads the next in time
):
    """Scores, tile by tile."""
    if PERSISTENT:
        tiles = tl.cdiv(ROW_SETS, BLOCK_M // K2) * tl.cdiv(COLUMN_SETS, BLOCK_N // L2)
        # Flattened, the loop over dimensions runs on into the next tile.
        for tile in tl.range(
            bound(tl.program_id(0)), bound(tiles), bound(tl.num_programs(0)), flatten=True
        ):
            store_tile(
                tile,
                row_ptr,
                column_ptr,
                score_ptr,
                row_lengths_ptr,
                column_lengths_ptr,
                alpha,
                D,
                ROW_SETS,
                COLUMN_SETS,
                stride_row_set,
                stride_row_element,
                stride_column_set,
                stride_column_element,
                stride_score_row,
                stride_score_column,
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
                GROUP,
                POLYNOMIAL,
                OUTER,
                PAIR,
                LANE,
                SIMILARITY,
                QUERY_ROWS,
            )
    else:
        tile = tl.program_id(0)
        store_tile(
            tile,
            row_ptr,
            column_ptr,
            score_ptr,
            row_lengths_ptr,
            column_lengths_ptr,
            alpha,
            D,
            ROW_SETS,
            COLUMN_SETS,
            stride_row_set,
            stride_row_element,
            stride_column_set,
            stride_column_element,
            stride_score_row,
            stride_score_column,
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
            GROUP,
            POLYNOMIAL,
            OUTER,
            PAIR,
            LANE,
            SIMILARITY,
            QUERY_ROWS,
        )


def constants(task: Problem, tile: Tile, log_mean: bool) -> dict[str, int | bool | str]:
    """Compile-time arguments of the kernel."""
    persistent = {"PERSISTENT": tile.persistent > 0}
    return score_tile.constants(task, tile, log_mean) | ROW_GROUP | persistent


def scores(
    queries: Side,
    gallery: Side,
    alpha: float | Tensor,
    log_mean: bool,
    similarity: str = SMOOTH_CHAMFER,
) -> Tensor:
    """Launch the kernel: (B, N) float32 scores of B query sets and N gallery sets."""
    device = queries.values.device
    out = torch.empty(queries.count, gallery.count, dtype=torch.float32, device=device)
    if out.numel() == 0:
        return out
    # Tiles are tall, so the larger side goes along the rows.
    task, strides = problem(queries, gallery, alpha, similarity), out.stride()
    rows, columns = queries, gallery
    if task.rows < task.columns:
        rows, columns, strides = gallery, queries, strides[::-1]
        task = problem(rows, columns, alpha, similarity, query_rows=False)
    tile = scores_tile(task)
    programs = triton.cdiv(task.rows, tile.block_m) * triton.cdiv(task.columns, tile.block_n)
    if tile.persistent:
        programs = min(programs, tile.persistent * PROCESSORS[task.arch])
    launches["smooth_chamfer_forward"] += 1
    with on_device(device):
        smooth_chamfer_forward[(programs,)](
            rows.values,
            columns.values,
            out,
            rows.lengths,
            columns.lengths,
            alpha,
            task.dims,
            task.row_sets,
            task.column_sets,
            *rows.strides,
            *columns.strides,
            *strides,
            **constants(task, tile, log_mean),
            **tile.options,
        )
    return out
