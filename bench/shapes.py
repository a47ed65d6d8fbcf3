"""The shapes that the benches of scores run: what a cell costs at least, and its random sets."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

QUERIES = (1, 16, 64, 256, 1024, 4096)
SIZES = (1, 4, 8, 32)
DIMS = (128, 256, 1024)


@dataclass(frozen=True)
class Shape:
    """B query sets of K elements against N gallery sets of L (K if None), D dimensions."""

    queries: int
    gallery: int
    k: int
    dim: int
    dtype: torch.dtype
    size: int | None = None
    similarity: str = "smooth_chamfer"

    def __str__(self) -> str:
        """In words."""
        size = "" if self.size is None else f"L={self.size} "
        name = "" if self.similarity == "smooth_chamfer" else f"{self.similarity} "
        sets = f"{self.queries:,} x {self.gallery:,} K={self.k} {size}D={self.dim}"
        return f"{name}{sets} {str(self.dtype).removeprefix('torch.')}"

    @property
    def cosines(self) -> int:
        """How many pairs of elements."""
        return self.queries * self.gallery * self.k * (self.size or self.k)

    @property
    def operations(self) -> float:
        """Multiplications and additions of the cosines."""
        return 2.0 * self.cosines * self.dim

    @property
    def moved(self) -> float:
        """Fewest bytes: inputs read once, scores written once in fp32."""
        elements = self.queries * self.k + self.gallery * (self.size or self.k)
        return float(elements * self.dim * self.dtype.itemsize + 4 * self.queries * self.gallery)

    def sets(self, device: torch.device, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Random unit vectors (B, K, D) and (N, L, D), rounded to the tested type."""
        generator = torch.Generator(device).manual_seed(seed)
        sides = ((self.queries, self.k), (self.gallery, self.size or self.k))
        return tuple(unit(count, k, self.dim, self.dtype, generator) for count, k in sides)


def unit(count: int, k: int, dim: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Random unit vectors (count, k, dim), made in blocks: fp32 copies of all would not fit."""
    found = torch.empty(count, k, dim, dtype=dtype, device=generator.device)
    for block in found.split(max(1, (1 << 26) // (k * dim))):
        values = torch.randn(block.shape, device=generator.device, generator=generator)
        block.copy_(torch.nn.functional.normalize(values, dim=-1))
    return found


def tiny(dtype: torch.dtype) -> list[Shape]:
    """For tests and rehearsals."""
    return [
        Shape(5, 33, 4, 64, dtype),
        Shape(1, 65, 4, 64, dtype),
        Shape(3, 17, 8, 64, dtype, 16, "maxsim"),
    ]


def chosen_on_gpu(dtype: torch.dtype) -> list[Shape]:
    """Eight that tell most, the most telling first; the last three are those of the peers."""
    return [
        Shape(1024, 65_536, 4, 1024, dtype),
        Shape(1024, 131_072, 4, 256, dtype),
        Shape(1, 1 << 20, 4, 1024, dtype),
        Shape(128, 32_768, 32, 128, dtype),
        Shape(64, 1 << 20, 4, 1024, dtype),
        Shape(16, 32_768, 32, 128, dtype, 128, "maxsim"),
        Shape(4, 1024, 1024, 128, dtype, 1024, "maxsim"),
        Shape(1, 1 << 18, 4, 1024, dtype, None, "maxsim"),
    ]


def chosen_on_cpu(dtype: torch.dtype) -> list[Shape]:
    """Many queries and one."""
    return [Shape(128, 4096, 4, 256, dtype), Shape(1, 65_536, 4, 256, dtype)]


def grid(dtype: torch.dtype, most_bytes: int, most_cosines: int) -> Iterator[Shape]:
    """Every K, D and number of queries, with as many gallery sets as memory and patience allow."""
    for k, dim, queries in itertools.product(SIZES, DIMS, QUERIES):
        by_bytes = most_bytes // (k * dim * dtype.itemsize)
        by_cosines = most_cosines // (queries * k * k)
        yield Shape(queries, max(1, min(by_bytes, by_cosines, 1 << 20)), k, dim, dtype)


def shapes(device: torch.device, scale: str) -> list[Shape]:
    """The shapes of a run: "tiny", "chosen" or "full"."""
    gpu = device.type == "cuda"
    dtype = torch.bfloat16 if gpu else torch.float32
    if scale == "tiny":
        return tiny(dtype)
    if scale == "chosen":
        return chosen_on_gpu(dtype) if gpu else chosen_on_cpu(dtype)
    return list(grid(dtype, 8 << 30 if gpu else 1 << 28, 1 << 31 if gpu else 1 << 26))


def part(found: list[Shape], which: str) -> list[Shape]:
    """Part I of N of the shapes, "I/N": every N-th, so that parts take about as long."""
    index, _, count = which.partition("/")
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise ValueError(f"part: got {which!r}, expected I/N with I from 1 to N, such as 1/4")
    return found[int(index) - 1 :: int(count)]
