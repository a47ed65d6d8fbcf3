"""Retrieval metrics of one picture-caption test set: R@K both ways and RSUM.

Shapes: I pictures, T captions; ``scores`` (I, T), larger is better; ``image_of_caption`` (T,)
gives the source picture of each caption; ``relevance`` (I, T) bool marks *every* fitting pair.

Everything derives from the rank of the best positive of each query: the number of negatives that
score at least as high. **Ties count against the model** (pessimistic), so a constant score matrix
earns R@1 = 0, not 100; and scores that differ by less than `TIE` of their size are ties, so that
two pictures with the same caption are not told apart by how fp32 rounded.

Without ``relevance`` the positives are the source pairs: any caption of a picture counts for
image-to-text. With it they are all fitting pairs, both ways. Queries without a positive have rank
-1 and stay out of every mean.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from divse.sets import EmbeddingSets
from divse.similarity import score

Array = npt.NDArray[Any]
Tile = tuple[int, int, int, int]  # image rows [0]:[1], caption columns [2]:[3]

CUTOFFS = (1, 5, 10)
#: Relative difference below which two scores are equal: the fp32 slack of every implementation.
TIE = 8 * float(np.finfo(np.float32).eps)


class Ranks(NamedTuple):
    """Rank of the best positive of every query, 0 = first, -1 = the query has no positive."""

    i2t: Array  # (I,) int64, pictures as queries
    t2i: Array  # (T,) int64, captions as queries


def evaluate(scores: Any, image_of_caption: Any, relevance: Any = None) -> dict[str, float]:
    """R@1/5/10 both ways and RSUM, in percent, of a score matrix (I, T)."""
    return recalls(ranks(scores, image_of_caption, relevance))


def evaluate_sets(
    images: EmbeddingSets, texts: EmbeddingSets, image_of_caption: Any, **options: Any
) -> dict[str, float]:
    """`evaluate` of two collections of sets, scored in blocks; options as in `set_ranks`."""
    return recalls(set_ranks(images, texts, image_of_caption, **options))


def recalls(ranks: Ranks) -> dict[str, float]:
    """i2t_r1, i2t_r5, i2t_r10, t2i_r1, t2i_r5, t2i_r10 in percent, and their sum ``rsum``."""
    result = {
        f"{direction}_r{cutoff}": 100.0 * float(np.mean(_judged(rank) < cutoff))
        for direction, rank in zip(("i2t", "t2i"), ranks, strict=True)
        for cutoff in CUTOFFS
    }
    return result | {"rsum": sum(result.values())}


def ranks(scores: Any, image_of_caption: Any, relevance: Any = None) -> Ranks:
    """Ranks of the best positive per query, from a score matrix (I, T)."""
    matrix = as_array(scores)
    positives = Positives(matrix.shape, image_of_caption, relevance)
    return _ranks(lambda tile: matrix[_window(tile)], positives, block=2048)


def set_ranks(
    images: EmbeddingSets,
    texts: EmbeddingSets,
    image_of_caption: Any,
    relevance: Any = None,
    *,
    similarity: str = "smooth_chamfer",
    block: int = 1024,
    device: Any = None,
    **params: Any,
) -> Ranks:
    """Ranks of the best positive per query of two collections of sets.

    The I x T score matrix never exists: tiles of ``block`` pictures by ``block`` captions are
    scored (``params`` goes to `divse.score`: alpha, log_mean, impl, ...), on ``device`` if given.
    A tile without a positive is scored once, the others twice.
    """
    positives = Positives((len(images), len(texts)), image_of_caption, relevance)

    def score_tile(tile: Tile) -> Array:
        rows, columns = _window(tile)
        a, b = images[rows].torch(device), texts[columns].torch(device)
        with torch.no_grad():
            return as_array(score(a, b, similarity, unit_norm=False, **params))

    return _ranks(score_tile, positives, block)


class Positives:
    """Which pairs count as right; tells it tile by tile, so that no I x T mask need exist."""

    def __init__(self, shape: tuple[int, ...], image_of_caption: Any, relevance: Any = None):
        """Check that both describe a score matrix of ``shape`` (I, T)."""
        if len(shape) != 2 or 0 in shape:
            raise ValueError(f"scores must be a non-empty (images, captions) matrix, got {shape}")
        self.shape = shape
        self.source = as_array(image_of_caption)
        self.relevance = None if relevance is None else as_array(relevance)
        self._check()

    def _check(self) -> None:
        images, captions = self.shape
        if self.source.shape != (captions,) or self.source.dtype.kind not in "iu":
            raise ValueError(
                f"image_of_caption must hold one integer per caption, shape ({captions},), "
                f"got {self.source.dtype} {self.source.shape}"
            )
        if self.source.min() < 0 or self.source.max() >= images:
            raise ValueError(f"image_of_caption must lie in [0, {images}), the range of pictures")
        if self.relevance is None:
            return
        if self.relevance.shape != self.shape or self.relevance.dtype != np.bool_:
            raise ValueError(
                f"relevance must be bool of the scores' shape {self.shape}, "
                f"got {self.relevance.dtype} {self.relevance.shape}"
            )
        if not self.relevance.any():
            raise ValueError("relevance marks no pair at all: nothing can be measured")

    def tile(self, tile: Tile) -> Array:
        """Bool mask of the positives of one tile."""
        if self.relevance is not None:
            return np.asarray(self.relevance[_window(tile)])
        rows = np.arange(tile[0], tile[1])
        return np.asarray(rows[:, None] == self.source[None, tile[2] : tile[3]])


def _ranks(score_tile: Callable[[Tile], Array], positives: Positives, block: int) -> Ranks:
    if block < 1:
        raise ValueError(f"block must be at least 1 set, got {block}")
    images, captions = positives.shape
    tiles = [
        (i, min(i + block, images), t, min(t + block, captions))
        for i in range(0, images, block)
        for t in range(0, captions, block)
    ]
    cached = lru_cache(maxsize=1)(lambda tile: checked(score_tile(tile)))  # one tile: score once
    best = _best_positives(cached, positives, tiles)
    needed = [b - TIE * np.abs(b) for b in best]  # a negative with this score draws level
    i2t, t2i = np.zeros(images, np.int64), np.zeros(captions, np.int64)
    for tile in tiles:
        rows, columns = _window(tile)
        scores, negative = cached(tile), ~positives.tile(tile)
        i2t[rows] += (negative & (scores >= needed[0][rows, None])).sum(1)
        t2i[columns] += (negative & (scores >= needed[1][None, columns])).sum(0)
    i2t[np.isnan(best[0])] = -1
    t2i[np.isnan(best[1])] = -1
    return Ranks(i2t, t2i)


def _best_positives(
    score_tile: Callable[[Tile], Array], positives: Positives, tiles: list[Tile]
) -> tuple[Array, Array]:
    """Best positive score per picture and per caption; NaN where a query has none."""
    best_image, best_text = (np.full(n, np.nan) for n in positives.shape)
    for tile in tiles:
        mask = positives.tile(tile)
        if not mask.any():
            continue
        rows, columns = _window(tile)
        # float64 holds every float16/32 score exactly, so both passes compare the same numbers
        right = np.where(mask, score_tile(tile).astype(np.float64), np.nan)
        best_image[rows] = np.fmax(best_image[rows], np.fmax.reduce(right, axis=1))
        best_text[columns] = np.fmax(best_text[columns], np.fmax.reduce(right, axis=0))
    return best_image, best_text


def _judged(rank: Array) -> Array:
    judged = np.asarray(rank[rank >= 0])
    if not judged.size:
        raise ValueError("no query has a positive: nothing can be measured")
    return judged


def _window(tile: Tile) -> tuple[slice, slice]:
    return slice(tile[0], tile[1]), slice(tile[2], tile[3])


def checked(scores: Array) -> Array:
    """Scores as floating-point numbers, none of them NaN."""
    if scores.dtype.kind != "f":
        return scores.astype(np.float64)
    if np.isnan(scores).any():
        raise ValueError("scores hold NaN: such a ranking has no meaning; check the embeddings")
    return scores


def as_array(values: Any) -> Array:
    """View a tensor, array or list as a numpy array on the host."""
    if not isinstance(values, torch.Tensor):
        return np.asarray(values)
    values = values.detach().cpu()
    return np.asarray((values.float() if values.dtype == torch.bfloat16 else values).numpy())
