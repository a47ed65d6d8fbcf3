"""Every configuration of the kernels: tile sizes by architecture and problem, and alpha ranges.

No kernel is tuned at run time. `bench/sass.py` shows registers, spills and instructions of what is
chosen here, on a machine without a GPU.
"""

from dataclasses import dataclass

import torch

#: Largest alpha at which a product of 4, of 2, or of 1 sums of up to 32 terms exp(alpha * c) and
#: its reciprocal stay within float32, for |c| <= 1.01. Beyond, exponents are shifted by maxima.
FACTOR_LIMITS = ((4, 18.0), (2, 40.0), (1, 80.0))
SHIFTED = 0

#: Streaming multiprocessors to fill before tiles may grow: A100 108, H100 132, B200 148.
PROCESSORS = {"interpreter": 4, "ampere": 108, "ada": 108, "hopper": 132, "blackwell": 148}


def log_factors(alpha: float | None) -> int:
    """How many sums may share one logarithm; `SHIFTED` where none may, or alpha is unknown."""
    if alpha is None:
        return SHIFTED
    return next((count for count, limit in FACTOR_LIMITS if alpha <= limit), SHIFTED)


@dataclass(frozen=True)
class Tile:
    """A program's work: `block_m` rows x `block_n` columns, `block_d` dimensions at a time.

    `block_o` is the number of dimensions of the gradient that a backward program owns. `repeats`
    is how many groups of 16 rows a warp holds, `pair` how many rows of a group a thread holds.
    """

    block_m: int
    block_n: int
    block_d: int
    num_warps: int
    num_stages: int
    repeats: int = 1
    pair: int = 2
    block_o: int = 0

    @property
    def options(self) -> dict[str, int | bool]:
        """Compiler options; contraction to FMA is asked for, as the default depends on Triton."""
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "enable_fp_fusion": True,
        }

    def row_order(self, k2: int) -> dict[str, int]:
        """OUTER, PAIR and LANE of tiles.py: elements of a set go to one thread first."""
        pair = min(self.pair, k2)
        lane = min(k2 // (pair * min(self.repeats, k2 // pair)), 16 // pair)
        return {"OUTER": k2 // (pair * lane), "PAIR": pair, "LANE": lane}


def family(capability: tuple[int, int] | None) -> str:
    """Architecture by compute capability; None is the interpreter."""
    if capability is None:
        return "interpreter"
    major, minor = capability
    if major == 9:
        return "hopper"
    if major in (10, 11):
        return "blackwell"
    return "ampere" if (major, minor) == (8, 0) else "ada"  # ada: 99 KiB of shared memory


def _interpreted(block: int) -> Tile:
    """The interpreter's time is its number of operations, whatever their size."""
    return Tile(block, block, 64, num_warps=2, num_stages=1, repeats=2, block_o=64)


_FORWARD_HALF = {
    "interpreter": (_interpreted(256), _interpreted(128), _interpreted(64)),
    "ampere": (Tile(128, 64, 64, 4, 3, repeats=2), Tile(64, 64, 64, 4, 3)),
    "ada": (Tile(128, 64, 64, 4, 2, repeats=2), Tile(64, 64, 64, 4, 2)),
    "hopper": (Tile(256, 128, 64, 8, 3, repeats=2), Tile(64, 64, 64, 4, 3)),
    "blackwell": (Tile(128, 128, 64, 4, 3, pair=1), Tile(64, 64, 64, 4, 3)),
}
_FORWARD_FLOAT = {
    "interpreter": _FORWARD_HALF["interpreter"],
    **dict.fromkeys(("ampere", "ada", "hopper", "blackwell"), (Tile(64, 64, 16, 4, 3),)),
}
_BACKWARD_HALF = {
    "interpreter": _FORWARD_HALF["interpreter"],
    "ampere": (Tile(64, 64, 32, 4, 2, block_o=128),),
    "ada": (Tile(64, 64, 32, 4, 2, block_o=128),),
    "hopper": (Tile(128, 64, 64, 8, 3, block_o=128),),
    "blackwell": (Tile(128, 64, 64, 4, 3, pair=1, block_o=128),),
}
_BACKWARD_FLOAT = {
    "interpreter": _BACKWARD_HALF["interpreter"],
    **dict.fromkeys(
        ("ampere", "ada", "hopper", "blackwell"), (Tile(32, 32, 16, 4, 2, block_o=64),)
    ),
}


def _largest_that_fills(tiles: tuple[Tile, ...], arch: str, rows: int, columns: int) -> Tile:
    """The first tile that occupies every processor, or else the last and smallest."""
    for tile in tiles:
        if -(-rows // tile.block_m) * -(-columns // tile.block_n) >= PROCESSORS[arch]:
            return tile
    return tiles[-1]


def forward_tile(arch: str, dtype: torch.dtype, rows: int, columns: int) -> Tile:
    """Tile of the forward kernel for so many elements, padded, along the two sides."""
    table = _FORWARD_FLOAT if dtype == torch.float32 else _FORWARD_HALF
    return _largest_that_fills(table[arch], arch, rows, columns)


def backward_tile(arch: str, dtype: torch.dtype, rows: int, columns: int, dims: int) -> Tile:
    """Tile of the backward kernel; programs divide rows x dims, and each walks over columns."""
    table = _BACKWARD_FLOAT if dtype == torch.float32 else _BACKWARD_HALF
    return _largest_that_fills(table[arch], arch, rows, columns)
