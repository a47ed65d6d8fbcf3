"""Exact search that reads one byte a number: bounds by int8 codes, exact scores where they matter.

A scan over the codes bounds every score from above; only sets whose bound reaches the best exact
scores so far are looked up in the gallery and scored. The result is that of the exact scan, bit for
bit, and every query is certified: `quantise.py` defines the codes, csrc/int8.h has the proof.
"""

from __future__ import annotations

import importlib.util
from typing import Any, NamedTuple

import torch
from torch import Tensor

from divse.sets import Array, EmbeddingSets, as_tensor
from divse.similarity.inputs import like, read_parameters, read_sets
from divse.similarity.native_ops import gallery_argument
from divse.similarity.quantise import Int8Sets, quantise
from divse.similarity.table import get_similarity

SIMILARITIES = ("smooth_chamfer", "chamfer", "maxsim", "mil")


class CertifiedTopK(NamedTuple):
    """The best of each query: ``scores``, ``ids`` (B, topk), best first; proof and its price.

    ``certified`` (B,) bool: proven to be the exact result; ``survivors`` (B,) int64: how many sets
    were scored exactly (it may vary with the number of threads).
    """

    scores: Array
    ids: Array
    certified: Array
    survivors: Array


def encode(
    gallery: Array, *, lengths: Array | None = None, offsets: Array | None = None
) -> Int8Sets:
    """Return the codes of unit vectors (N, L, D), or packed (elements, D) with offsets (N + 1,).

    As `quantise`, by all threads of the C++ module where that is installed (packed elements need
    it). Raises ValueError for what is no unit vector.
    """
    if offsets is None and importlib.util.find_spec("divse_native") is None:
        return quantise(as_tensor(gallery), None if lengths is None else as_tensor(lengths))
    import divse_native

    values, dtype = gallery_argument(as_tensor(gallery, name="gallery"))
    arrays = divse_native.quantise(
        values,
        gallery_lengths=_host(lengths),
        gallery_offsets=_host(offsets),
        threads=torch.get_num_threads(),
        **dtype,
    )
    return Int8Sets(*(torch.from_numpy(array) for array in arrays))


def search(
    queries: Array | EmbeddingSets,
    gallery: Array,
    codes: tuple[Array, Array, Array],
    topk: int,
    similarity: str = "smooth_chamfer",
    *,
    alpha: float | Tensor = 16.0,
    log_mean: bool = False,
    query_lengths: Array | None = None,
    gallery_lengths: Array | None = None,
    gallery_offsets: Array | None = None,
    excluded: Array | None = None,
    **parameters: Any,
) -> CertifiedTopK:
    """Find the ``topk`` best sets of every query, exactly, reading mostly the codes.

    Args:
        queries: (B, K, D) of any norm, taken as they are, or EmbeddingSets.
        gallery: unit vectors on the CPU: (N, L, D), or packed (elements, D) with
            ``gallery_offsets`` (N + 1,); memory maps are read in place, a few sets of them.
        codes: what `encode` or `quantise` returns for this gallery.
        topk: 1 to N.
        similarity: one of `SIMILARITIES`, with ``alpha``, ``log_mean`` and ``parameters`` as in
            `divse.search`.
        query_lengths: (B,) integers, or None.
        gallery_lengths: (N,) integers, or None.
        excluded: bitmap, uint8 (ceil(N / 8),); bit n & 7 of byte n >> 3 leaves set n out. Where
            too few sets are left, the last scores are -inf and their ids -1.

    Returns:
        CertifiedTopK, numpy if ``queries`` are numpy, else torch.

    Raises:
        ValueError: for what does not fit, and for a similarity that no bound of cosines bounds.
    """
    import divse_native

    chosen = get_similarity(similarity)
    if similarity not in SIMILARITIES:
        raise ValueError(
            f"certified search: got {similarity}, expected one of {', '.join(SIMILARITIES)}; "
            "search exactly instead"
        )
    options = read_parameters(chosen, alpha, log_mean, parameters)
    if "alpha" in options:
        options["alpha"] = float(options["alpha"])
    read = read_sets(queries, query_lengths, "queries")
    values, dtype = gallery_argument(as_tensor(gallery, name="gallery"))
    options |= dtype | {
        "similarity": similarity,
        "query_lengths": _host(read.lengths),
        "gallery_lengths": _host(gallery_lengths),
        "gallery_offsets": _host(gallery_offsets),
        "excluded": _host(excluded),
        "threads": torch.get_num_threads(),
    }
    given, scales, residuals = (_host(array) for array in codes)
    found = divse_native.certified_search(
        read.values.detach().float().numpy(), values, given, scales, residuals, topk, **options
    )
    return CertifiedTopK(*(like(torch.from_numpy(array), queries) for array in found))


def _host(array: Array | None) -> Any:
    return None if array is None else as_tensor(array).detach().numpy()
