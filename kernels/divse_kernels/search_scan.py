"""A scan of a part of the gallery: a tile of scores that ends by appending the few that matter.

The gallery lies along the rows, so that few queries take the narrow tiles that are bound by memory,
and many queries share a tile of the gallery while it is in the L2 cache. Tiles whose sets are all
excluded cost one load.
"""

import dataclasses

import triton
import triton.language as tl
from torch import Tensor

from divse_kernels import score_tile
from divse_kernels.best import Best, append, wanted_sets
from divse_kernels.launch import Side, launches, on_device, problem
from divse_kernels.long_scan import scan_long_sets
from divse_kernels.problem import MAX_SIZE, SMOOTH_CHAMFER, Problem
from divse_kernels.score_tile import tile_scores
from divse_kernels.smooth_chamfer_forward import tile_of_program
from divse_kernels.tuning import ROW_GROUP, Tile, forward_tile

#: Numbers that change from part to part and from search to search: one compilation serves all.
VARYING = ["GALLERY_SETS", "QUERY_SETS", "first_position"]


@triton.jit(do_not_specialize=VARYING)
def search_scan(
    gallery_ptr,  # [GALLERY_SETS, K, D]
    query_ptr,  # [QUERY_SETS, L, D]
    keys_ptr,  # [QUERY_SETS, WIDTH] and the other arrays of `append`
    counts_ptr,
    thresholds_ptr,
    state_ptr,
    excluded_ptr,  # bitmap over positions, or None
    gallery_lengths_ptr,  # [GALLERY_SETS] int64, or None
    query_lengths_ptr,  # [QUERY_SETS] int64, or None
    alpha,
    D,
    GALLERY_SETS,
    QUERY_SETS,
    first_position,  # of the first of these gallery sets
    WIDTH,
    stride_gallery_set,  # strides of the inputs in units of 8 values
    stride_gallery_element,
    stride_query_set,
    stride_query_element,
    K: tl.constexpr,  # of a gallery set, which lies along the rows
    L: tl.constexpr,  # of a query
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
    """Append what beats the thresholds among one tile of scores, `[M_SETS, N_SETS]`."""
    M_SETS: tl.constexpr = BLOCK_M // K2
    N_SETS: tl.constexpr = BLOCK_N // L2
    tile_m, tile_n = tile_of_program(
        tl.cdiv(GALLERY_SETS, M_SETS), tl.cdiv(QUERY_SETS, N_SETS), GROUP
    )
    m = tile_m * M_SETS + tl.arange(0, M_SETS)
    positions = m.to(tl.int64) + first_position
    wanted = wanted_sets(excluded_ptr, positions, m < GALLERY_SETS)
    needed = tl.load(state_ptr) == 0  # what follows a row that was too short is scanned again
    if excluded_ptr is not None:
        needed &= tl.max(wanted.to(tl.int32), axis=0) > 0
    if needed:
        scores = tile_scores(
            gallery_ptr,
            None,
            gallery_lengths_ptr,
            tile_m * M_SETS,
            GALLERY_SETS,
            stride_gallery_set,
            stride_gallery_element,
            query_ptr,
            None,
            query_lengths_ptr,
            tile_n * N_SETS,
            QUERY_SETS,
            stride_query_set,
            stride_query_element,
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
        append(
            keys_ptr,
            counts_ptr,
            thresholds_ptr,
            state_ptr,
            scores,
            wanted,
            positions,
            tile_n * N_SETS + tl.arange(0, N_SETS),
            QUERY_SETS,
            WIDTH,
        )


def constants(task: Problem, tile: Tile, log_mean: bool) -> dict[str, int | bool | str]:
    """Compile-time arguments of the kernel."""
    return score_tile.constants(task, tile, log_mean) | ROW_GROUP


@dataclasses.dataclass(frozen=True)
class ExactScan:
    """Scores of queries (B, K, D) with a part of the gallery, as search_driver.Scan.

    `excluded` is a bitmap over the positions of the whole gallery. Tiles are chosen for a gallery
    of `gallery_sets`, whatever the part: one score has the same bits in all parts.
    """

    queries: Side
    alpha: float
    log_mean: bool
    excluded: Tensor | None
    gallery_sets: int
    similarity: str = SMOOTH_CHAMFER

    def __call__(self, part: tuple[Tensor | None, ...], first: int, best: Best) -> None:
        """Launch the kernel on a part: values (n, L, D) and lengths (n,) or None."""
        values, lengths = part
        assert values is not None
        gallery = Side.of(values, lengths)
        if max(gallery.size, self.queries.size) > MAX_SIZE:
            how = self.alpha, self.log_mean, self.similarity
            scan_long_sets(
                self.queries, gallery, how, self.excluded, first, best, self.gallery_sets
            )
            return
        task = problem(gallery, self.queries, self.alpha, self.similarity, query_rows=False)
        tile = forward_tile(dataclasses.replace(task, row_sets=self.gallery_sets))
        programs = triton.cdiv(task.rows, tile.block_m) * triton.cdiv(task.columns, tile.block_n)
        launches["search_scan"] += 1
        with on_device(values.device):
            search_scan[(programs,)](
                gallery.values,
                self.queries.values,
                *best.pointers,
                self.excluded,
                gallery.lengths,
                self.queries.lengths,
                self.alpha,
                task.dims,
                task.row_sets,
                task.column_sets,
                first,
                best.width,
                *gallery.strides,
                *self.queries.strides,
                **constants(task, tile, self.log_mean),
                **tile.options,
            )
