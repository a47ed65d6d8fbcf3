"""What a launch is about, without tensors: enough to choose a tile and to compile a kernel."""

from dataclasses import dataclass

import torch

#: Largest alpha at which a product of 4, of 2, or of 1 sums of up to 32 terms exp(alpha * c) and
#: its reciprocal stay within float32, for |c| <= 1.01. Beyond, exponents are shifted by maxima.
FACTOR_LIMITS = ((4, 18.0), (2, 40.0), (1, 80.0))
SHIFTED = 0

#: Elements of a set that the kernels of whole sets serve; larger ones go to those of long sets.
MAX_SIZE = 32
SMOOTH_CHAMFER = "smooth_chamfer"
#: Where it matters which side the queries are.
ONE_SIDED = frozenset({"maxsim", "maxsim_mean"})
#: What the kernels can make of cosines; `maxsim_mean` is MaxSim's mean over the query elements.
SIMILARITIES = frozenset({SMOOTH_CHAMFER, "chamfer", "mil"}) | ONE_SIDED


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


def padded(size: int) -> int:
    """Elements of a set in a tile: the next power of two."""
    return 1 << (size - 1).bit_length()


@dataclass(frozen=True)
class Problem:
    """Two sides of sets, rows and columns, and the path that alpha and lengths lead to.

    `alpha` is None if only the device knows it.
    """

    arch: str
    dtype: torch.dtype
    dims: int
    row_sets: int
    row_size: int
    column_sets: int
    column_size: int
    alpha: float | None
    row_ragged: bool = False
    column_ragged: bool = False
    similarity: str = SMOOTH_CHAMFER
    query_rows: bool = True
    mixed: bool = False  # one side is float32, and `dtype` is the other's

    @property
    def rows(self) -> int:
        """Rows of all tiles."""
        return self.row_sets * padded(self.row_size)

    @property
    def columns(self) -> int:
        """Columns of all tiles."""
        return self.column_sets * padded(self.column_size)

    @property
    def pair_sizes(self) -> tuple[int, int]:
        """To how many elements the sets of either side are padded where pairs are scored.

        The smaller side is padded to an eighth of the larger one, so that neither side of a tile
        exceeds 128 elements.
        """
        k, size = padded(self.row_size), padded(self.column_size)
        return max(k, size // 8), max(size, k // 8)

    @property
    def factors(self) -> int:
        """How many sums may share one logarithm; `SHIFTED` where none may, or alpha is unknown.

        Shifted, the score of single elements is their cosine exactly, however small alpha is.
        """
        if self.alpha is None or self.row_size == self.column_size == 1:
            return SHIFTED
        return next((count for count, limit in FACTOR_LIMITS if self.alpha <= limit), SHIFTED)

    @property
    def demanding(self) -> bool:
        """Whether the path holds more in registers: shifts, masks, or sums that cross threads."""
        if self.similarity != SMOOTH_CHAMFER:
            return False
        ragged = self.row_ragged or self.column_ragged
        large = max(self.row_size, self.column_size) > 8
        return ragged or large or self.factors == SHIFTED

    @property
    def constants(self) -> dict[str, int | bool]:
        """Compile-time arguments that all kernels take."""
        return {
            "K": self.row_size,
            "L": self.column_size,
            "K2": padded(self.row_size),
            "L2": padded(self.column_size),
            "ROW_RAGGED": self.row_ragged,
            "COLUMN_RAGGED": self.column_ragged,
            "ALPHA_ON_DEVICE": self.alpha is None,
        }
