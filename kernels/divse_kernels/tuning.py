"""Every configuration of the kernels: tiles by architecture and problem.

These are the defaults: where autotune.py has measured a better tile on the present device, that
one is taken, so every `NAME_tile(problem)` here is decorated with `@tuned`. `bench/sass.py` shows
registers, spills and instructions of what is chosen here.
"""

from dataclasses import dataclass, replace

import torch

from divse_kernels.problem import SHIFTED, SMOOTH_CHAMFER, Problem, padded
from divse_kernels.tile_cache import tuned

#: Streaming multiprocessors that a launch should occupy: A100 108, H100 132, B200 148.
PROCESSORS = {"interpreter": 4, "ampere": 108, "ada": 108, "hopper": 132, "blackwell": 148}
#: Up to so many dimensions a product takes no longer than its epilogue.
SHALLOW = 256
#: Compile-time argument of kernels of all pairs: rows of tiles that share columns in the L2 cache.
ROW_GROUP = {"GROUP": 8}
#: Warps of kernels that only move or sum what they read.
FEW_WARPS = 4


@dataclass(frozen=True)
class Tile:
    """A program's work: `block_m` rows x `block_n` columns, `block_d` dimensions at a time.

    `repeats` is how many groups of 16 rows a warp holds; in one of `polynomial` elements the
    forward kernel takes exp2 by a polynomial, which relieves the special functions (0: in none).
    `persistent` programs a processor go from tile to tile (0: a program has one tile).
    """

    block_m: int
    block_n: int
    block_d: int
    num_warps: int
    num_stages: int
    repeats: int = 1
    polynomial: int = 4
    persistent: int = 0

    @property
    def options(self) -> dict[str, int | bool]:
        """Compiler options; contraction to FMA is asked for, as the default depends on Triton."""
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "enable_fp_fusion": True,
        }

    @property
    def constants(self) -> dict[str, int]:
        """Compile-time arguments that all kernels take."""
        return {"BLOCK_M": self.block_m, "BLOCK_N": self.block_n, "BLOCK_D": self.block_d}

    def row_order(self, k2: int) -> dict[str, int]:
        """OUTER, PAIR and LANE of tiles.py: elements of a set go to one thread first."""
        pair = min(2, k2)
        lane = min(k2 // pair // min(self.repeats, k2 // pair), 16 // pair)
        return {"OUTER": k2 // (pair * lane), "PAIR": pair, "LANE": lane}


def _interpreted(block_m: int, block_n: int) -> Tile:
    """The interpreter's time is its number of operations, whatever their size."""
    return Tile(block_m, block_n, 128, num_warps=2, num_stages=1, repeats=2)


_INTERPRETER = tuple(
    _interpreted(*block) for block in ((256, 256), (128, 128), (256, 32), (256, 16), (64, 64))
)
# From large to small. The narrow tiles are for few queries: the gallery is then read once, from
# memory, and the pipeline is deep to keep many loads in flight.
_FORWARD = {
    "interpreter": _INTERPRETER,
    "ampere": (
        Tile(128, 64, 64, 4, 3, repeats=2),
        Tile(64, 64, 64, 4, 3),
        Tile(128, 32, 64, 4, 4, repeats=2),
        Tile(128, 16, 64, 4, 4, repeats=2),
    ),
    "ada": (
        Tile(128, 64, 64, 4, 2, repeats=2),
        Tile(64, 64, 64, 4, 2),
        Tile(128, 32, 64, 4, 3, repeats=2),
        Tile(128, 16, 64, 4, 3, repeats=2),
    ),
    # 256 x 128 rather than 128 x 256: a thread holds 4 rows, so sets of 4 need no shuffles.
    "hopper": (
        Tile(256, 128, 64, 8, 3, repeats=2),
        Tile(128, 64, 64, 4, 4, repeats=2),
        Tile(64, 64, 64, 4, 4),
        # Few queries: bound by memory, so that two or three programs share a processor and one
        # loads while another ends.
        Tile(128, 32, 64, 4, 4, repeats=2),
        Tile(128, 16, 64, 4, 4, repeats=2),
    ),
    # A thread holds one row here, so sums over rows are shuffles: issue is the bottleneck.
    "blackwell": (
        Tile(128, 128, 64, 4, 3, polynomial=0),
        Tile(128, 64, 64, 4, 4, polynomial=0),
        Tile(64, 64, 64, 4, 4, polynomial=0),
        Tile(128, 32, 128, 4, 4, polynomial=0),
        Tile(128, 16, 128, 4, 4, polynomial=0),
    ),
}
_DEMANDING_FORWARD = {
    **_FORWARD,
    "blackwell": (Tile(128, 128, 64, 8, 3, polynomial=0), *_FORWARD["blackwell"][1:]),
}
# The weights kernel holds the exponentials until their sums are known, and loads what they share:
# a thread has half of the cosines that it has in the forward kernel, one row group at a time.
_WEIGHTS = {
    "interpreter": _INTERPRETER,
    "ampere": (Tile(128, 64, 64, 8, 3, polynomial=0), Tile(64, 64, 64, 4, 3, polynomial=0)),
    "ada": (Tile(128, 64, 64, 8, 2, polynomial=0), Tile(64, 64, 64, 4, 2, polynomial=0)),
    "hopper": (
        Tile(128, 128, 64, 8, 3, polynomial=0),
        Tile(128, 64, 64, 8, 3, polynomial=0),
        Tile(64, 64, 64, 4, 3, polynomial=0),
    ),
    "blackwell": (Tile(128, 64, 64, 8, 3, polynomial=0), Tile(64, 64, 64, 8, 3, polynomial=0)),
}
# Shifted exponents are two for each cosine; where alpha is learned, the cosines stay beside their
# weights, for its gradient.
_SHIFTED_WEIGHTS = {
    **_WEIGHTS,
    "hopper": _WEIGHTS["hopper"][1:],
    "blackwell": _WEIGHTS["blackwell"][1:],
}
# float32 is multiplied without tensor cores, which would round it.
_FLOAT_FORWARD = (Tile(128, 64, 16, 8, 3, polynomial=0), Tile(64, 64, 16, 8, 3, polynomial=0))


def _gathering(block_d: int, num_stages: int) -> tuple[Tile, ...]:
    """Tiles of the candidates kernel, for queries of up to 16 and of up to 32 elements.

    Memory is the limit: loads take whole lines, and three programs fit on a processor, so that one
    loads while another waits for its ids or finishes its scores. The shorter are for few sets.
    """
    blocks = ((64, 16), (32, 16), (64, 32), (32, 32))
    return tuple(Tile(*block, block_d, 4, num_stages, polynomial=0) for block in blocks)


_CANDIDATES = {
    "interpreter": (_interpreted(128, 16), _interpreted(32, 16), _interpreted(64, 32)),
    "ampere": _gathering(128, 3),
    "ada": _gathering(64, 4),
    "hopper": _gathering(128, 3),
    "blackwell": _gathering(128, 3),
}
_FLOAT_CANDIDATES = _gathering(32, 3)

# Long sets: many rows share what is read, 16 KiB a block; the first tile that they fill. Up to 128
# dimensions, rows stay in shared memory, and two programs fit on a processor, so that one
# multiplies while the other compares.
_LONG = {
    "interpreter": (_interpreted(128, 128),),
    "ampere": (Tile(128, 64, 128, 4, 3, repeats=2), Tile(64, 64, 128, 4, 3)),
    "ada": (Tile(128, 64, 128, 4, 2, repeats=2), Tile(64, 64, 128, 4, 3)),
    "hopper": (
        Tile(256, 64, 128, 8, 3, repeats=2),
        Tile(128, 64, 128, 4, 3, repeats=2),
        Tile(64, 64, 128, 4, 4),
    ),
    "blackwell": (Tile(128, 64, 128, 4, 3), Tile(64, 64, 128, 4, 4)),
}
_LONG_WIDE = {
    "interpreter": (_interpreted(128, 128),),
    "ampere": (Tile(128, 64, 64, 4, 3, repeats=2), Tile(64, 64, 64, 4, 3)),
    "ada": (Tile(128, 64, 64, 4, 2, repeats=2), Tile(64, 64, 64, 4, 2)),
    "hopper": (Tile(128, 128, 64, 8, 3), Tile(64, 128, 64, 4, 4)),
    "blackwell": (Tile(128, 128, 64, 4, 3), Tile(64, 64, 64, 4, 4)),
}
# Queries in float32 lie in two or three parts: fewer rows.
_LONG_MIXED = {
    "interpreter": (_interpreted(128, 128),),
    "ampere": (Tile(128, 64, 64, 8, 2),),
    "ada": (Tile(128, 64, 32, 8, 2),),
    "hopper": (Tile(128, 64, 128, 8, 3),),
    "blackwell": (Tile(128, 64, 128, 8, 3),),
}
_LONG_WIDE_MIXED = {
    **_LONG_MIXED,
    "hopper": (Tile(128, 64, 64, 8, 3),),
    "blackwell": (Tile(128, 64, 64, 8, 3),),
}
# Their weights: a thread also holds what it makes of its cosines.
_LONG_WEIGHTS = {
    "interpreter": (_interpreted(128, 128),),
    "ampere": (Tile(128, 64, 128, 8, 3), Tile(64, 64, 128, 4, 3)),
    "ada": (Tile(128, 64, 128, 8, 2), Tile(64, 64, 128, 4, 2)),
    "hopper": (Tile(128, 64, 128, 8, 3), Tile(64, 64, 128, 4, 3)),
    "blackwell": (Tile(128, 64, 128, 8, 3), Tile(64, 64, 128, 4, 3)),
}
_LONG_WIDE_WEIGHTS = {
    "interpreter": (_interpreted(128, 128),),
    "ampere": (Tile(128, 64, 64, 8, 3), Tile(64, 64, 64, 4, 3)),
    "ada": (Tile(128, 64, 64, 8, 2), Tile(64, 64, 64, 4, 2)),
    "hopper": (Tile(128, 64, 64, 8, 3), Tile(64, 64, 64, 4, 3)),
    "blackwell": (Tile(128, 64, 64, 8, 3), Tile(64, 64, 64, 4, 3)),
}
_FLOAT_LONG = (Tile(128, 32, 16, 8, 3), Tile(64, 64, 16, 8, 3))

# The scan of int8 codes: two sums for each cosine, lines of 128 codes. The narrow tiles are bound
# by memory, and two or three programs fit on a processor: loads go on during epilogues.
_NARROW_CODES = (
    Tile(128, 32, 128, 4, 3, repeats=2, polynomial=0),
    Tile(128, 16, 128, 4, 3, repeats=2, polynomial=0),
)
_CODES = {
    "interpreter": _INTERPRETER,
    "ampere": (Tile(64, 64, 128, 4, 3, polynomial=0), *_NARROW_CODES),
    "ada": (Tile(64, 64, 128, 4, 3, polynomial=0), *_NARROW_CODES),
    "hopper": (
        Tile(128, 128, 128, 8, 3, polynomial=0),
        Tile(128, 64, 128, 8, 3, polynomial=0),
        *_NARROW_CODES,
    ),
    "blackwell": (Tile(128, 64, 128, 8, 3, polynomial=0), *_NARROW_CODES),
}


def _choose(tiles: tuple[Tile, ...], problem: Problem) -> Tile:
    """The first tile that fits the columns and occupies the device, or else the last that fits."""
    size = padded(problem.column_size)
    widest = max(16, size, padded(problem.columns))
    narrowest = max(size, min(widest, 64))
    fitting = [t for t in tiles if narrowest <= t.block_n <= widest] or [tiles[-1]]
    for tile in fitting:
        programs = -(-problem.rows // tile.block_m) * -(-problem.columns // tile.block_n)
        if programs >= PROCESSORS[problem.arch]:
            return tile
    return fitting[-1]


def _forward(problem: Problem) -> Tile:
    if problem.dtype == torch.float32 and problem.arch != "interpreter":
        return _choose(_FLOAT_FORWARD, problem)
    table = _DEMANDING_FORWARD if problem.demanding else _FORWARD
    return _choose(table[problem.arch], problem)


@tuned
def forward_tile(problem: Problem) -> Tile:
    """Tile of kernels that make something of scores; a program owns one tile of them."""
    return _forward(problem)


@tuned
def scores_tile(problem: Problem) -> Tile:
    """Tile of the all-pairs kernel, whose programs go from tile to tile if registers suffice.

    Where a product takes no longer than its epilogue, two programs share a processor, so that one
    multiplies while the other computes scores; they read more, which longer products would feel.
    """
    tile = _forward(problem)
    if problem.row_ragged or problem.column_ragged or _shifted(problem):
        return tile
    if problem.arch == "interpreter":
        return replace(tile, persistent=1)
    if tile != _FORWARD["hopper"][0]:
        return tile
    if problem.dims <= SHALLOW and max(problem.row_size, problem.column_size) <= 8:
        return replace(tile, block_m=128, num_warps=4, persistent=2)
    return replace(tile, persistent=1)


def _with_masks(problem: Problem) -> Tile:
    """The tile of all pairs, or half of it where a thread would hold too many scores or exponents.

    A mask of groups and more of each score come on top of what that kernel keeps.
    """
    tile = _forward(problem)
    cosines = padded(problem.row_size) * padded(problem.column_size)  # for each score
    if (problem.factors == SHIFTED or cosines < 4) and tile.block_m > 128:
        return replace(tile, block_m=128, repeats=1)
    return tile


@tuned
def mining_tile(problem: Problem) -> Tile:
    """Tile of the kernel of hardest negatives."""
    return _with_masks(problem)


@tuned
def lse_tile(problem: Problem) -> Tile:
    """Tile of the kernel of log-sum-exps of rows and of columns."""
    return _with_masks(problem)


@tuned
def pairs_tile(problem: Problem) -> Tile:
    """Tile of the kernel of pairs: as many as fill the 16 rows of a product on tensor cores."""
    k, size = problem.pair_sizes
    sets = max(1, 16 // min(k, size))
    block_m, block_n = sets * k, sets * size
    if problem.arch == "interpreter":
        block_d, stages = 128, 1
    else:
        block_d, stages = (32 if problem.dtype == torch.float32 else 64), 4
    warps = max(1, block_m * block_n // 512)
    return Tile(block_m, block_n, block_d, warps, stages, polynomial=0)


@tuned
def pair_sums_tile(problem: Problem) -> Tile:
    """Tile of the gradients of pairs: one set along the rows, block_d dimensions of it."""
    size = padded(problem.row_size)
    block_d = min(256, padded(problem.dims))
    return Tile(size, padded(problem.column_size), block_d, max(1, size // 8), 3, polynomial=0)


def row_warps(width: int, most: int = 16) -> int:
    """Warps of a kernel that sorts or walks over a row of so many keys."""
    return max(1, min(most, width // 256))


def _weights(problem: Problem) -> Tile:
    if problem.dtype == torch.float32 and problem.arch != "interpreter":
        return _choose(_FLOAT_FORWARD, problem)
    table = _SHIFTED_WEIGHTS if _shifted(problem) else _WEIGHTS
    return _choose(table[problem.arch], problem)


def _shifted(problem: Problem) -> bool:
    return problem.similarity == SMOOTH_CHAMFER and problem.factors == SHIFTED


@tuned
def weights_tile(problem: Problem) -> Tile:
    """Tile of the weights kernel; a program owns one tile of weights."""
    return _weights(problem)


@tuned
def lse_weights_tile(problem: Problem) -> Tile:
    """The same where it makes scores first, for a loss of log-sum-exps.

    On Blackwell, where a thread holds a row, both shifted exponentials of more than 16 columns
    would spill.
    """
    single = problem.dtype == torch.float32
    if problem.arch == "blackwell" and _shifted(problem) and not single:
        return Tile(128, max(16, padded(problem.column_size)), 64, 4, 3, polynomial=0)
    return _weights(problem)


@tuned
def rbf_tile(problem: Problem) -> Tile:
    """Tile of the kernels of distances between single elements."""
    if problem.dtype == torch.float32 and problem.arch != "interpreter":
        return _choose(_FLOAT_FORWARD, problem)
    return _choose(_WEIGHTS[problem.arch], problem)


@tuned
def candidates_tile(problem: Problem) -> Tile:
    """Tile of the candidates kernel: one query along the columns, its own sets along the rows."""
    if problem.dtype == torch.float32 and problem.arch != "interpreter":
        return _choose(_FLOAT_CANDIDATES, problem)
    return _choose(_CANDIDATES[problem.arch], problem)


@tuned
def long_tile(problem: Problem) -> Tile:
    """Tile of the kernel of long sets; a program walks over columns."""
    if problem.dtype == torch.float32 and problem.arch != "interpreter":
        tiles = _FLOAT_LONG
    elif problem.mixed:
        tiles = (_LONG_MIXED if problem.dims <= 128 else _LONG_WIDE_MIXED)[problem.arch]
    else:
        tiles = (_LONG if problem.dims <= 128 else _LONG_WIDE)[problem.arch]
    return next((t for t in tiles if t.block_m <= problem.rows), tiles[-1])


@tuned
def long_weights_tile(problem: Problem) -> Tile:
    """Tile of the weights of long sets: as the scores', a thread with half of the cosines."""
    if problem.dtype == torch.float32 and problem.arch != "interpreter":
        tiles = _FLOAT_LONG
    else:
        tiles = (_LONG_WEIGHTS if problem.dims <= 128 else _LONG_WIDE_WEIGHTS)[problem.arch]
    return next((t for t in tiles if t.block_m <= problem.rows), tiles[-1])


@tuned
def named_weights_tile(problem: Problem) -> Tile:
    """The same for pairs."""
    return _named(problem)


@tuned
def named_tile(problem: Problem) -> Tile:
    """Tile of scores where every row set names its column sets."""
    return _named(problem)


def _named(problem: Problem) -> Tile:
    """One row set, or a part of it."""
    block_m = max(16, min(padded(problem.row_size), 128))
    block_n = max(16, min(padded(problem.column_size), 64))
    if problem.arch == "interpreter":
        return replace(_interpreted(block_m, 128), repeats=1)
    if problem.dtype == torch.float32:
        return Tile(block_m, block_n, 32, 4, 3)
    block_d = 128 if problem.dims <= 128 else 64
    if problem.arch == "ada" and problem.mixed:
        block_d = 32  # of the little shared memory, the parts of the queries take most
    return Tile(block_m, block_n, block_d, 8 if block_m * block_n > 4096 else 4, 3)


@tuned
def codes_tile(problem: Problem) -> Tile:
    """Tile of the scan of int8 codes: the gallery along the rows."""
    return _choose(_CODES[problem.arch], problem)
