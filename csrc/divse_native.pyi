"""Smooth-Chamfer between sets of vectors on a CPU; compiled from csrc/.

Legend: B query sets of K elements, N gallery sets of L elements, D dims. Vectors are taken as they
are (no normalisation), in any strides; copies are made only of arrays whose last axis is not
contiguous or not aligned. What lies past a set's length never matters. The GIL is released.

``alpha`` lies in (0, 1000]. ``threads=0`` means OMP_NUM_THREADS, or all CPUs of this process.
``isa`` is "auto" or one of :func:`instruction_sets`. Wrong input raises ValueError.
"""

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float32]
_Gallery = NDArray[np.float32] | NDArray[np.float16]
_Ids = NDArray[np.int64]

def scores(
    queries: _Floats,
    gallery: _Gallery,
    *,
    alpha: float,
    log_mean: bool = False,
    query_lengths: _Ids | None = None,
    gallery_lengths: _Ids | None = None,
    threads: int = 0,
    isa: str = "auto",
) -> _Floats:
    """Scores (B, N) of queries (B, K, D) float32 with a gallery (N, L, D) float32 or float16."""

def search(
    queries: _Floats,
    gallery: _Gallery,
    topk: int,
    *,
    alpha: float,
    log_mean: bool = False,
    query_lengths: _Ids | None = None,
    gallery_lengths: _Ids | None = None,
    threads: int = 0,
    isa: str = "auto",
) -> tuple[_Floats, _Ids]:
    """The best scores and their positions, both (B, topk), best first, ties by lower position.

    Bit for bit the stable full sort of :func:`scores`, without ever storing B x N of them.
    """

def backward(
    queries: _Floats,
    gallery: _Floats,
    grad_scores: NDArray[np.float32],
    *,
    alpha: float,
    log_mean: bool = False,
    query_lengths: _Ids | None = None,
    gallery_lengths: _Ids | None = None,
    threads: int = 0,
    isa: str = "auto",
) -> tuple[_Floats, _Floats, float]:
    """Gradients (B, K, D), (N, L, D) and for alpha of sum(grad_scores * scores).

    Zero in the padding; the same bits for any number of threads.
    """

def instruction_sets() -> list[str]:
    """Instruction sets that this CPU can run, best first, such as ["avx512", "baseline"]."""
