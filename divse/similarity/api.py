"""The public functions of similarity: scores, pairs, candidates, search, hardest negatives.

All take numpy arrays, torch tensors or EmbeddingSets and return the same kind. ``unit_norm=True``
normalises every element in fp32 first (differentiable); ``False`` takes vectors as they are.
``impl`` is "auto" or one of "reference", "triton", "cuda", "native"; a named one never falls back.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from divse.sets import Array, EmbeddingSets, as_tensor
from divse.similarity import dispatch
from divse.similarity.dispatch import Explanation
from divse.similarity.inputs import Sets, like, read_excluded, read_pair, read_parameters
from divse.similarity.table import get_similarity
from divse.similarity.topk import TopK

SetsLike = Array | EmbeddingSets


def score(
    queries: SetsLike,
    gallery: SetsLike,
    similarity: str = "smooth_chamfer",
    *,
    alpha: float | Tensor = 16.0,
    log_mean: bool = False,
    unit_norm: bool = True,
    query_lengths: Array | None = None,
    gallery_lengths: Array | None = None,
    impl: str = "auto",
    **parameters: Any,
) -> Any:
    """Score every query set against every gallery set.

    Args:
        queries: (B, K, D), or EmbeddingSets.
        gallery: (N, L, D), or EmbeddingSets.
        similarity: one of ``divse.SIMILARITIES``; its own ``parameters`` as keywords.
        alpha: smoothness in (0, 1000], or a tensor of one number to learn it.
        log_mean: mean instead of sum inside the logarithms, so that set sizes do not matter.
        unit_norm: normalise the elements; False if they are of unit norm already.
        query_lengths: (B,) integers, how many elements of each set are real; None = all.
        gallery_lengths: (N,) likewise.
        impl: "auto", "reference", "triton", "cuda" (Hopper) or "native" (a CPU).

    Returns:
        (B, N) scores in fp32 (fp64 for fp64 input), differentiable in queries, gallery and alpha.

    Raises:
        ValueError, TypeError: say what came, what was expected and what to do.
    """
    chosen = get_similarity(similarity)
    q, g = read_pair(queries, gallery, query_lengths, gallery_lengths, unit_norm)
    given = read_parameters(chosen, alpha, log_mean, parameters)
    scores = dispatch.run("scores", impl, q, g, similarity=chosen, parameters=given)
    return like(scores, queries, gallery)


def smooth_chamfer(
    queries: SetsLike,
    gallery: SetsLike,
    *,
    alpha: float | Tensor = 16.0,
    log_mean: bool = False,
    unit_norm: bool = True,
    query_lengths: Array | None = None,
    gallery_lengths: Array | None = None,
    impl: str = "auto",
) -> Any:
    """Smooth-Chamfer scores (B, N) of (B, K, D) queries and an (N, L, D) gallery; see `score`."""
    return score(
        queries,
        gallery,
        alpha=alpha,
        log_mean=log_mean,
        unit_norm=unit_norm,
        query_lengths=query_lengths,
        gallery_lengths=gallery_lengths,
        impl=impl,
    )


def explain(
    queries: SetsLike,
    gallery: SetsLike,
    similarity: str = "smooth_chamfer",
    *,
    operation: str = "scores",
    impl: str = "auto",
    query_lengths: Array | None = None,
    gallery_lengths: Array | None = None,
) -> Explanation:
    """Say which implementation would serve these sets, and why the others would not.

    ``operation`` is "scores", "pairs", "candidates", "search" or "hardest_negatives".
    """
    if operation not in dispatch.OPERATIONS:
        known = ", ".join(dispatch.OPERATIONS)
        raise ValueError(f"operation: got {operation!r}, expected one of {known}")
    q, g = read_pair(queries, gallery, query_lengths, gallery_lengths, unit_norm=False)
    return dispatch.choose(operation, impl, q, g, get_similarity(similarity))


def score_pairs(
    a: SetsLike,
    b: SetsLike,
    similarity: str = "smooth_chamfer",
    *,
    alpha: float | Tensor = 16.0,
    log_mean: bool = False,
    unit_norm: bool = True,
    a_lengths: Array | None = None,
    b_lengths: Array | None = None,
    impl: str = "auto",
    **parameters: Any,
) -> Any:
    """Score set n of ``a`` (N, K, D) with set n of ``b`` (N, L, D) -> (N,); differentiable."""
    chosen = get_similarity(similarity)
    q, g = read_pair(a, b, a_lengths, b_lengths, unit_norm)
    if len(q.values) != len(g.values):
        raise ValueError(
            f"pairs: got {len(q.values)} and {len(g.values)} sets, expected as many on both sides"
        )
    given = read_parameters(chosen, alpha, log_mean, parameters)
    return like(dispatch.run("pairs", impl, q, g, similarity=chosen, parameters=given), a, b)


def score_candidates(
    queries: SetsLike,
    gallery: SetsLike,
    candidates: Array,
    similarity: str = "smooth_chamfer",
    *,
    alpha: float | Tensor = 16.0,
    log_mean: bool = False,
    unit_norm: bool = True,
    query_lengths: Array | None = None,
    gallery_lengths: Array | None = None,
    impl: str = "auto",
    **parameters: Any,
) -> Any:
    """Score each query with its own candidates only.

    ``candidates`` (B, M) int64 are positions in the gallery, -1 = none (scored -inf).
    Returns (B, M).
    """
    chosen = get_similarity(similarity)
    given = read_parameters(chosen, alpha, log_mean, parameters)
    # Only the gathered sets are normalised: a gallery is large and candidates are few.
    q, g = read_pair(queries, gallery, query_lengths, gallery_lengths, unit_norm=False)
    where = as_tensor(candidates, name="candidates").to(g.values.device)
    _check_candidates(where, len(q.values), len(g.values))
    if unit_norm and not isinstance(queries, EmbeddingSets):
        q, _ = read_pair(queries, queries, query_lengths, query_lengths, unit_norm=True)
    if unit_norm and not isinstance(gallery, EmbeddingSets):
        g, where = _normalised_rows(g, where)
    scores = dispatch.run("candidates", impl, q, g, where, similarity=chosen, parameters=given)
    return like(scores, queries, gallery)


def _normalised_rows(g: Sets, candidates: Tensor) -> tuple[Sets, Tensor]:
    """The candidates' sets alone, normalised, and the candidates as positions among them."""
    rows, local = torch.unique(candidates.clamp_min(0), return_inverse=True)
    lengths = None if g.lengths is None else g.lengths[rows]
    few, _ = read_pair(g.values[rows], g.values[:1], lengths, None, unit_norm=True)
    return few, torch.where(candidates < 0, -1, local)


def _check_candidates(candidates: Tensor, queries: int, gallery: int) -> None:
    if candidates.ndim != 2 or candidates.shape[0] != queries:
        raise ValueError(
            f"candidates: got shape {tuple(candidates.shape)}, expected ({queries}, M)"
        )
    if candidates.is_floating_point():
        raise TypeError(f"candidates: got {candidates.dtype}, expected int64 positions")
    if candidates.numel() and not -1 <= int(candidates.min()) <= int(candidates.max()) < gallery:
        raise ValueError(
            f"candidates: got positions {int(candidates.min())} to {int(candidates.max())}, "
            f"expected -1 (none) to {gallery - 1}"
        )


def search(
    queries: SetsLike,
    gallery: SetsLike,
    topk: int,
    similarity: str = "smooth_chamfer",
    *,
    alpha: float | Tensor = 16.0,
    log_mean: bool = False,
    unit_norm: bool = True,
    query_lengths: Array | None = None,
    gallery_lengths: Array | None = None,
    excluded: Array | None = None,
    impl: str = "auto",
    **parameters: Any,
) -> TopK:
    """Find the ``topk`` best gallery sets of every query, exactly; never stores B x N scores.

    Arguments as in `score`. ``excluded`` (N,) bool leaves sets out; where fewer than ``topk`` are
    left, the last scores are -inf and their ids -1. Returns ``TopK(scores (B, topk), ids (B,
    topk))``, best first, ties by position in the gallery. No gradient. A large gallery is best
    given as EmbeddingSets or with ``unit_norm=False``: otherwise a normalised copy of it is made.
    """
    chosen = get_similarity(similarity)
    given = read_parameters(chosen, alpha, log_mean, parameters)
    with torch.no_grad():
        q, g = read_pair(queries, gallery, query_lengths, gallery_lengths, unit_norm)
        count = _read_count(topk, "topk", len(g.values))
        bits = None if excluded is None else read_excluded(excluded, g.values)
        scores, ids = dispatch.run(
            "search", impl, q, g, count, similarity=chosen, parameters=given, excluded=bits
        )
    return TopK(like(scores, queries, gallery), like(ids, queries, gallery))


def _read_count(count: int, name: str, most: int) -> int:
    if isinstance(count, bool) or not isinstance(count, int | np.integer):
        raise TypeError(f"{name}: got {type(count).__name__}, expected an int")
    if not 1 <= count <= most:
        raise ValueError(f"{name}: got {count}, expected 1 to {most}, the gallery's size")
    return int(count)


def hardest_negatives(
    queries: SetsLike,
    gallery: SetsLike,
    positives: tuple[Array, Array],
    similarity: str = "smooth_chamfer",
    *,
    topn: int | None = None,
    alpha: float | Tensor = 16.0,
    log_mean: bool = False,
    unit_norm: bool = True,
    query_lengths: Array | None = None,
    gallery_lengths: Array | None = None,
    impl: str = "auto",
    **parameters: Any,
) -> Any:
    """Find the best-scoring gallery sets of every query that are not among its positives.

    ``positives`` is a pair of integer group ids, (B,) of the queries and (N,) of the gallery: two
    sets of one group belong together. Returns indices (B,) int64, or (B, topn) best first if
    ``topn`` is given; ties by position, -1 where every (further) gallery set is a positive. Never
    stores B x N scores. No gradient.
    """
    chosen = get_similarity(similarity)
    given = read_parameters(chosen, alpha, log_mean, parameters)
    with torch.no_grad():
        q, g = read_pair(queries, gallery, query_lengths, gallery_lengths, unit_norm)
        own, theirs = (as_tensor(ids, name="positives").to(q.values.device) for ids in positives)
        if own.shape != (len(q.values),) or theirs.shape != (len(g.values),):
            raise ValueError(
                f"positives: got shapes {tuple(own.shape)} and {tuple(theirs.shape)}, expected "
                f"group ids ({len(q.values)},) and ({len(g.values)},)"
            )
        count = 1 if topn is None else _read_count(topn, "topn", len(g.values))
        ids, _ = dispatch.run(
            "hardest_negatives",
            impl,
            q,
            g,
            own.to(torch.int64),
            theirs.to(torch.int64),
            count,
            similarity=chosen,
            parameters=given,
        )
    return like(ids[:, 0] if topn is None else ids, queries, gallery)
