"""The public functions of similarity: scores, pairs, candidates, search, hardest negatives.

All take numpy arrays, torch tensors or EmbeddingSets and return the same kind. ``unit_norm=True``
normalises every element in fp32 first (differentiable); ``False`` takes vectors as they are.
``impl`` is "auto" or one of "reference", "triton", "native"; a named one never falls back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from divse.sets import Array, EmbeddingSets, as_tensor
from divse.similarity import dispatch, native
from divse.similarity.dispatch import Explanation
from divse.similarity.inputs import Sets, like, read_pair, read_parameters
from divse.similarity.table import Similarity, get_similarity
from divse.similarity.topk import RunningTopK, TopK

SetsLike = Array | EmbeddingSets
_BLOCK_ELEMENTS = 1 << 24  # cosines in memory at a time where a function works block by block


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
        impl: "auto", "reference", "triton" or "native".

    Returns:
        (B, N) scores in fp32 (fp64 for fp64 input), differentiable in queries, gallery and alpha.

    Raises:
        ValueError, TypeError: say what came, what was expected and what to do.
    """
    chosen = get_similarity(similarity)
    q, g = read_pair(queries, gallery, query_lengths, gallery_lengths, unit_norm)
    given = read_parameters(chosen, alpha, log_mean, parameters)
    return like(dispatch.scores(q, g, chosen, given, impl), queries, gallery)


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
    impl: str = "auto",
    query_lengths: Array | None = None,
    gallery_lengths: Array | None = None,
) -> Explanation:
    """Say which implementation would serve these sets, and why the others would not."""
    q, g = read_pair(queries, gallery, query_lengths, gallery_lengths, unit_norm=False)
    return dispatch.choose(impl, q, g, get_similarity(similarity))


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _gathered(
    q: Sets, g: Sets, similarity: Similarity, given: dict[str, Any], candidates: Tensor
) -> Tensor:
    """Scores (b, m) of the queries with their own gathered gallery sets; -1 gives -inf."""
    found = candidates.clamp_min(0)
    flat = found.reshape(-1)
    chosen = Sets(g.values[flat], None if g.lengths is None else g.lengths[flat])
    sets = _wide(chosen.clean()).view(*found.shape, *g.values.shape[1:])
    rows, columns = q.mask, chosen.mask
    with torch.autocast(sets.device.type, enabled=False):
        result = similarity.reduce(
            torch.einsum("bkd,bmld->bmkl", _wide(q.clean()).to(sets.dtype), sets),
            None if rows is None else rows[:, None, :],
            None if columns is None else columns.view(*found.shape, -1),
            **given,
        )
    return result.masked_fill(candidates < 0, -torch.inf)


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
    own = torch.arange(len(g.values), device=g.values.device)[:, None]
    return like(_gathered(q, g, chosen, given, own)[:, 0], a, b)


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
    **parameters: Any,
) -> Any:
    """Score each query with its own candidates only.

    ``candidates`` (B, M) int64 are positions in the gallery, -1 = none (scored -inf).
    Returns (B, M), differentiable. Works in blocks of queries.
    """
    chosen = get_similarity(similarity)
    # Only the gathered sets are normalised: a gallery is large and candidates are few.
    q, g = read_pair(queries, gallery, query_lengths, gallery_lengths, unit_norm=False)
    normalise = (
        unit_norm and not isinstance(queries, EmbeddingSets),
        unit_norm and not isinstance(gallery, EmbeddingSets),
    )
    if normalise[0]:
        q, _ = read_pair(queries, queries, query_lengths, query_lengths, unit_norm=True)
    where = as_tensor(candidates, name="candidates").to(g.values.device)
    _check_candidates(where, len(q.values), len(g.values))
    given = read_parameters(chosen, alpha, log_mean, parameters)
    per_query = max(1, where.shape[1] * g.values.shape[1] * g.values.shape[2])
    blocks = []
    for rows in _slices(len(q.values), max(1, _BLOCK_ELEMENTS // per_query)):
        asked = where[rows]
        sets, local = g, asked
        if normalise[1]:
            sets, local = _normalised_rows(g, asked)
        blocks.append(_gathered(q[rows], sets, chosen, given, local))
    scores = torch.cat(blocks) if blocks else _wide(q.values).new_zeros(where.shape)
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


def _slices(total: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, total)) for start in range(0, total, step))


def _score_blocks(
    q: Sets, g: Sets, similarity: Similarity, given: dict[str, Any], impl: str
) -> Iterator[tuple[slice, Tensor]]:
    """Scores (B, n) of successive blocks of the gallery."""
    per_set = max(1, q.values.shape[0] * q.values.shape[1] * g.values.shape[1])
    for part in _slices(len(g.values), max(1, _BLOCK_ELEMENTS // per_set)):
        yield part, dispatch.scores(q, g[part], similarity, given, impl)


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
    impl: str = "auto",
    **parameters: Any,
) -> TopK:
    """Find the ``topk`` best gallery sets of every query, exactly; never stores B x N scores.

    Arguments as in `score`. Returns ``TopK(scores (B, topk), ids (B, topk))``, best first, ties by
    position in the gallery. No gradient. A large gallery is best given as EmbeddingSets or with
    ``unit_norm=False``: otherwise a normalised copy of it is made.
    """
    chosen = get_similarity(similarity)
    given = read_parameters(chosen, alpha, log_mean, parameters)
    with torch.no_grad():
        q, g = read_pair(queries, gallery, query_lengths, gallery_lengths, unit_norm)
        if isinstance(topk, bool) or not isinstance(topk, int | np.integer):
            raise TypeError(f"topk: got {type(topk).__name__}, expected an int")
        if not 1 <= topk <= len(g.values):
            raise ValueError(f"topk: got {topk}, expected 1 to {len(g.values)}, the gallery's size")
        serving = dispatch.choose(impl, q, g, chosen).impl
        if serving == "native":
            dispatch.calls["native.search"] += 1
            scores, ids = native.search(q, g, int(topk), **given)
        else:
            best = RunningTopK(int(topk))
            for part, block in _score_blocks(q, g, chosen, given, serving):
                best.add(block, torch.arange(part.start, part.stop, device=block.device))
            assert best.scores is not None and best.ids is not None
            scores, ids = best.scores, best.ids
    return TopK(like(scores, queries, gallery), like(ids, queries, gallery))


def hardest_negatives(
    queries: SetsLike,
    gallery: SetsLike,
    positives: tuple[Array, Array],
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
    """Find the best-scoring gallery set of every query that is not one of its positives.

    ``positives`` is a pair of integer group ids, (B,) of the queries and (N,) of the gallery: two
    sets of one group belong together. Returns indices (B,) int64, ties by position, -1 where
    every gallery set is a positive. Never stores B x N scores. No gradient.
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
        best = RunningTopK(1)
        for part, block in _score_blocks(q, g, chosen, given, impl):
            block = block.masked_fill(own[:, None] == theirs[None, part], -torch.inf)
            best.add(block, torch.arange(part.start, part.stop, device=block.device))
        assert best.scores is not None and best.ids is not None
        ids = torch.where(best.scores[:, 0] == -torch.inf, -1, best.ids[:, 0])
    return like(ids, queries, gallery)
