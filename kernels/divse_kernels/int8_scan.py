"""A scan of int8 codes: a tile of upper bounds that ends by appending what they cannot rule out.

What a scan appends is scored exactly before it is merged, so thresholds are exact scores. A set of
the best `topk` has a bound that is not below its score, so it is appended: the search is certified
to find what a search of the exact embeddings finds.
"""

import dataclasses

import triton
import triton.language as tl
from torch import Tensor

from divse_kernels import candidates, int8_tile, rescoring
from divse_kernels.best import Best, append, wanted_sets
from divse_kernels.int8_codes import CodedQueries
from divse_kernels.int8_tile import tile_bounds
from divse_kernels.launch import Side, launches, on_device, problem
from divse_kernels.problem import SMOOTH_CHAMFER, Problem
from divse_kernels.search import STREAMED_SETS
from divse_kernels.search_scan import VARYING
from divse_kernels.smooth_chamfer_forward import tile_of_program
from divse_kernels.tuning import ROW_GROUP, Tile, codes_tile


@triton.jit(do_not_specialize=VARYING)
def int8_scan(
    code_ptr,  # [GALLERY_SETS, K, D] int8, contiguous
    scale_ptr,  # [GALLERY_SETS, K] float32
    residual_ptr,  # [GALLERY_SETS, K] float32
    part_ptr,  # [2, QUERY_SETS, L, D] int8, contiguous
    terms_ptr,  # [5, QUERY_SETS, L] float32
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
    K: tl.constexpr,  # of a gallery set, which lies along the rows
    L: tl.constexpr,  # of a query
    K2: tl.constexpr,
    L2: tl.constexpr,
    FACTORS: tl.constexpr,
    LOG_MEAN: tl.constexpr,
    ROW_RAGGED: tl.constexpr,
    COLUMN_RAGGED: tl.constexpr,
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
    """Append what may beat the thresholds among one tile of bounds, `[M_SETS, N_SETS]`."""
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
        bounds = tile_bounds(
            code_ptr,
            scale_ptr,
            residual_ptr,
            gallery_lengths_ptr,
            tile_m * M_SETS,
            GALLERY_SETS,
            part_ptr,
            terms_ptr,
            query_lengths_ptr,
            tile_n * N_SETS,
            QUERY_SETS,
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
            bounds,
            wanted,
            positions,
            tile_n * N_SETS + tl.arange(0, N_SETS),
            QUERY_SETS,
            WIDTH,
        )


def constants(task: Problem, tile: Tile, log_mean: bool) -> dict[str, int | bool | str]:
    """Compile-time arguments of the kernel."""
    return int8_tile.constants(task, tile, log_mean) | ROW_GROUP


@dataclasses.dataclass(frozen=True)
class CertifiedScan:
    """Exact scores of the sets of a part that bounds cannot rule out, as search_driver.Scan.

    `survivors` (B,) int64 counts the sets scored exactly. `excluded` is a bitmap over positions.
    """

    coded: CodedQueries
    queries: Side
    alpha: float
    log_mean: bool
    excluded: Tensor | None
    survivors: Tensor
    similarity: str = SMOOTH_CHAMFER

    def __call__(self, part: tuple[Tensor | None, ...], first: int, best: Best) -> None:
        """Scan a part: codes (n, L, D), scales, residuals (n, L), values (n, L, D), lengths."""
        codes, scales, residuals, values, lengths = part
        gallery = Side.of(values, lengths)
        self.launch(Side(codes, gallery.lengths), scales, residuals, first, best)
        chosen = rescoring.appended(best, first, self.survivors)
        scores = candidates.scores(
            self.queries, gallery, chosen, self.alpha, self.log_mean, self.similarity
        )
        rescoring.rescore(best, chosen, scores, first)

    def launch(
        self, gallery: Side, scales: Tensor, residuals: Tensor, first: int, best: Best
    ) -> None:
        """Launch the kernel on the codes of a part, whose first set is at position `first`."""
        columns = Side(self.coded.parts[0], self.coded.lengths)
        task = problem(gallery, columns, self.alpha, self.similarity, query_rows=False)
        tile = codes_tile(dataclasses.replace(task, row_sets=STREAMED_SETS))  # for all parts
        programs = triton.cdiv(task.rows, tile.block_m) * triton.cdiv(task.columns, tile.block_n)
        launches["int8_scan"] += 1
        with on_device(scales.device):
            int8_scan[(programs,)](
                gallery.values,
                scales,
                residuals,
                self.coded.parts,
                self.coded.terms,
                *best.pointers,
                self.excluded,
                gallery.lengths,
                columns.lengths,
                self.alpha,
                task.dims,
                task.row_sets,
                task.column_sets,
                first,
                best.width,
                **constants(task, tile, self.log_mean),
                **tile.options,
            )
