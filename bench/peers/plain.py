"""Plain numpy: similarities of sets, the best of scores, and the re-ranking of candidates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
ALPHA = 16.0
BLOCK = 1 << 18  # cosines at a time, which stay in the cache


def cosines(queries: Array, sets: Array) -> Array:
    """All cosines (n, L, B, K) of queries (B, K, D) with sets (n, L, D).

    The gallery is the left factor of the product, which is the faster order for few queries.
    """
    (b, k, d), (n, size, _) = queries.shape, sets.shape
    return (sets.reshape(-1, d) @ queries.reshape(-1, d).T).reshape(n, size, b, k)


def smooth_chamfer(queries: Array, sets: Array) -> Array:
    """Smooth-Chamfer similarity (B, n), in the precision of the inputs."""
    found = cosines(queries, sets)
    found *= ALPHA
    np.exp(found, out=found)
    over_sets, over_queries = np.log(found.sum(1)), np.log(found.sum(3))  # (n, B, K), (n, L, B)
    return ((over_sets.mean(2) + over_queries.mean(1)) / (2 * ALPHA)).T


def maxsim(queries: Array, sets: Array) -> Array:
    """MaxSim (B, n): for each query element its best cosine, summed."""
    return cosines(queries, sets).max(1).sum(2).T


SIMILARITIES = {"smooth_chamfer": smooth_chamfer, "maxsim": maxsim}


def best(scores: Array, topk: int) -> tuple[Array, Array]:
    """The best (B, topk) of scores (B, n), best first, and their places."""
    some = np.argpartition(-scores, min(topk, scores.shape[1]) - 1, axis=1)[:, :topk]
    order = np.argsort(-np.take_along_axis(scores, some, 1), axis=1, kind="stable")
    places = np.take_along_axis(some, order, 1)
    return np.take_along_axis(scores, places, 1), places


def all_scores(similarity: str, queries: Array, gallery: Array) -> Array:
    """Scores (B, N) of every set, block by block."""
    score: Callable[[Array, Array], Array] = SIMILARITIES[similarity]
    step = max(1, BLOCK // (gallery.shape[1] * queries.shape[0] * queries.shape[1]))
    blocks = range(0, len(gallery), step)
    return np.concatenate([score(queries, gallery[i : i + step]) for i in blocks], axis=1)


def rerank(queries: Array, gallery: Array, candidates: list[Array], topk: int) -> Any:
    """Order each query's candidates by Smooth-Chamfer -> scores and positions (B, topk)."""
    scores = np.full((len(queries), topk), -np.inf, dtype=np.float32)
    ids = np.full((len(queries), topk), -1, dtype=np.int64)
    for row, proposed in enumerate(candidates):
        if len(proposed):
            own, places = best(
                all_scores("smooth_chamfer", queries[row, None], gallery[proposed]), topk
            )
            count = own.shape[1]
            scores[row, :count], ids[row, :count] = own[0], proposed[places[0]]
    return scores, ids


def owners(elements: Array, k: int, queries: int) -> list[Array]:
    """Sets that own the found elements: (queries x K, depth), -1 = none -> positions per query."""
    rows = elements.reshape(queries, -1)
    return [np.unique(row[row >= 0] // k) for row in rows]
