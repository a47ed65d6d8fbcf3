"""Similarities of sets of vectors on a CPU; compiled from csrc/.

Legend: B query sets of K elements, N gallery sets of L elements, D dims. Vectors are taken as they
are (no normalisation), in any strides; copies are made only of arrays whose last axis is not
contiguous or not aligned, so memory maps are read in place. What lies past a set's length never
matters. The GIL is released. Wrong input raises ValueError, an unknown keyword TypeError.
"""

from typing import Literal, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float32]
_Ids = NDArray[np.int64]
_Gallery = NDArray[np.float32] | NDArray[np.float16] | NDArray[np.uint16]

class _Similarity(TypedDict, total=False):
    """Smooth-Chamfer (default), Chamfer, MaxSim or MIL, and how to run it.

    alpha in (0, 1000] (default 16) and log_mean are Smooth-Chamfer's, reduction ("sum" or "mean")
    MaxSim's. threads=0 means OMP_NUM_THREADS, or all CPUs of this process. isa is "auto" or one of
    :func:`instruction_sets`.
    """

    similarity: str
    alpha: float
    log_mean: bool
    reduction: str
    query_lengths: _Ids | None
    gallery_lengths: _Ids | None
    threads: int
    isa: str

class _Options(_Similarity, total=False):
    """Packed sets are (elements of all sets, D), set n from offsets[n] to offsets[n + 1].

    A uint16 gallery needs gallery_type="bfloat16".
    """

    query_offsets: _Ids | None
    gallery_offsets: _Ids | None
    gallery_type: Literal["float32", "float16", "bfloat16"] | None

def scores(queries: _Floats, gallery: _Gallery, **options: Unpack[_Options]) -> _Floats:
    """Scores (B, N) of queries (B, K, D) with a gallery (N, L, D)."""

def search(
    queries: _Floats,
    gallery: _Gallery,
    topk: int,
    *,
    excluded: NDArray[np.uint8] | None = None,
    **options: Unpack[_Options],
) -> tuple[_Floats, _Ids]:
    """The best scores and their positions, both (B, topk), best first, ties by lower position.

    Bit n & 7 of byte n >> 3 of ``excluded`` leaves set n out; where too few sets are left, the last
    scores are -inf and their positions -1. Bit for bit the stable full sort of :func:`scores`,
    without ever storing B x N of them.
    """

def candidate_scores(
    queries: _Floats, gallery: _Gallery, candidates: _Ids, **options: Unpack[_Options]
) -> _Floats:
    """Scores (B, M) of every query with its own candidates (B, M), -inf where that is -1."""

def candidate_search(
    queries: _Floats, gallery: _Gallery, candidates: _Ids, topk: int, **options: Unpack[_Options]
) -> tuple[_Floats, _Ids]:
    """The best ``topk`` of every query's own candidates (B, M): scores and ids (B, topk).

    -inf and -1 where there are fewer; equal scores come by id.
    """

def scores_and_cosines(
    queries: _Floats, gallery: _Floats, **options: Unpack[_Similarity]
) -> tuple[_Floats, _Floats]:
    """:func:`scores`, and the cosines (N * L, ceil(B / 16) * 16 * K) for :func:`backward`."""

def backward(
    queries: _Floats,
    gallery: _Floats,
    grad_scores: _Floats,
    *,
    cosines: _Floats | None = None,
    **options: Unpack[_Similarity],
) -> tuple[_Floats, _Floats, float]:
    """Gradients (B, K, D), (N, L, D) and for alpha of sum(grad_scores * scores).

    Zero in the padding; the same bits for any number of threads. Those of a maximum go to the first
    of several equal cosines.
    """

def candidate_backward(
    queries: _Floats,
    gallery: _Floats,
    candidates: _Ids,
    grad_scores: _Floats,
    **options: Unpack[_Similarity],
) -> tuple[_Floats, _Floats, float]:
    """As :func:`backward`, of sum(grad_scores * candidate_scores); all are (B, M)."""

def quantise(
    gallery: _Gallery,
    *,
    gallery_lengths: _Ids | None = None,
    gallery_offsets: _Ids | None = None,
    gallery_type: str = ...,
    threads: int = 0,
    isa: str = "auto",
) -> tuple[NDArray[np.int8], _Floats, _Floats]:
    """int8 codes (..., D) of unit vectors, their scales and residuals (...).

    ``divse/similarity/quantise.py`` says what they are: codes and scales are equal to its,
    residuals up to the last place. Raises ValueError for an element that is not finite or no unit
    vector.
    """

def certified_search(
    queries: _Floats,
    gallery: _Gallery,
    codes: NDArray[np.int8],
    scales: _Floats,
    residuals: _Floats,
    topk: int,
    *,
    excluded: NDArray[np.uint8] | None = None,
    **options: Unpack[_Options],
) -> tuple[_Floats, _Ids, NDArray[np.bool_], _Ids]:
    """:func:`search` by its codes: scores, ids (B, topk), certified (B,) and survivors (B,).

    Scores and ids are those of :func:`search`, bit for bit; survivors is how many sets were scored
    exactly, which may vary with the threads.
    """

class Int8Gallery:
    """Codes of N sets that lie side by side, to be scored by the codes alone.

    Codes (slots, ceil(D / 4), 16, 4), zero past D, and scales (slots, 16): groups of 16 sets side
    by side, each with as many slots as its largest set has elements; ``lengths`` (N,) unless all
    sets have as many. ``order`` (N,) are the ids of the sets, each of 0 to N - 1 once; None: their
    places. Sets begins[c] to begins[c + 1] - 1 lie in cell c, which set c of the ``leaders`` stands
    for; begins (C + 1,). The arrays must not change.
    """

    def __init__(
        self,
        codes: NDArray[np.int8],
        scales: _Floats,
        sets: int,
        dim: int,
        lengths: _Ids | None = None,
        order: NDArray[np.int32] | None = None,
        leaders: Int8Gallery | None = None,
        begins: _Ids | None = None,
    ) -> None: ...
    def search(
        self,
        queries: _Floats,
        topk: int,
        *,
        excluded: NDArray[np.uint8] | None = None,
        probe: int | None = None,
        ordered: bool = True,
        **options: Unpack[_Options],
    ) -> tuple[_Floats, _Ids]:
        """Estimated scores and ids (B, topk) of the best sets; queries are rounded to int8 as well.

        ``probe`` looks into so many cells for each query, those whose leaders are the best, and the
        rest of the groups at their ends; None looks at all sets. ``excluded`` is a bitmap by id.
        Unless ``ordered`` the best come in any order, those that are missing (-inf, -1) last.
        """

    def search_exactly(
        self,
        sketches: _Floats,
        queries: _Floats,
        gallery: _Gallery,
        depth: int,
        topk: int,
        *,
        excluded: NDArray[np.uint8] | None = None,
        probe: int | None = None,
        **options: Unpack[_Options],
    ) -> tuple[_Floats, _Ids, _Ids]:
        """The best ``topk`` by exact score of the ``depth`` best by their codes.

        The codes are of sketches: ``sketches`` (B, K, d) are of the queries (B, K, D), and
        ``gallery`` are the sets themselves, by id. Scores and ids (B, topk) as of
        :func:`candidate_search`, and how many sets (B,) were scored exactly.
        """

def int8_bounds(
    queries: _Floats,
    gallery: _Gallery,
    codes: NDArray[np.int8],
    scales: _Floats,
    residuals: _Floats,
    parts: int,
    **options: Unpack[_Options],
) -> _Floats:
    """Upper bounds (B, N) of :func:`scores` by the first part of the queries' codes, or both."""

def instruction_sets() -> list[str]:
    """Instruction sets that this CPU can run, best first, such as ["avx512", "baseline"]."""
