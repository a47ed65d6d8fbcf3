"""Retrieval metrics of one picture-caption test set: R@K both ways and RSUM, mAP@R, R-Precision.

Shapes: I pictures, T captions; ``scores`` (I, T), larger is better; ``image_of_caption`` (T,)
gives the source picture of each caption; ``relevance`` (I, T) bool marks *every* fitting pair.

Everything derives from the places of the positives of each query: the number of negatives that
score at least as high (`divse.evaluation.ranking`). **Ties count against the model** (pessimistic),
so a constant score matrix earns R@1 = 0, not 100; and scores that differ by less than `TIE` of
their size are ties, so that two pictures with the same caption are not told apart by how fp32
rounded.

Without ``relevance`` the positives are the source pairs: any caption of a picture counts for
image-to-text. With it they are all fitting pairs, both ways. Queries without a positive have rank
-1 and stay out of every mean.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from divse.evaluation.figures import precisions
from divse.evaluation.judgement import Array, Judgement, both_ways
from divse.evaluation.ranking import negatives_ahead
from divse.evaluation.scores import MatrixScores, Scores, SetScores, as_array
from divse.sets import EmbeddingSets

CUTOFFS = (1, 5, 10)


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
    return _ranks(MatrixScores(scores), image_of_caption, relevance, block=2048)


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
    A tile without a positive is scored once; the others twice, unless all fit into memory.
    """
    scores = SetScores(images, texts, similarity, device=device, **params)
    return _ranks(scores, image_of_caption, relevance, block)


def map_at_r(scores: Any, relevance: Any) -> dict[str, float]:
    """mAP@R and R-Precision in percent, both ways, against all fitting pairs (I, T).

    R is the number of positives of a query. R-Precision is their share among its first R results;
    AP@R is the mean over the first R places of the precision at each place that holds a positive.
    """
    source, result = MatrixScores(scores), {}
    judgements = both_ways(*_fitting(source.shape, None, relevance), every=True)
    found = negatives_ahead(source, judgements, block=2048)
    for way, judgement, ahead in zip(("i2t", "t2i"), judgements, found, strict=True):
        for name, values in precisions(judgement, ahead).items():
            result[f"{way}_{name}"] = 100.0 * float(values.mean())
    return result


def _ranks(scores: Scores, image_of_caption: Any, relevance: Any, block: int) -> Ranks:
    judgements = both_ways(*_fitting(scores.shape, image_of_caption, relevance))
    found = negatives_ahead(scores, judgements, block=block)
    return Ranks(*map(_of_all, scores.shape, judgements, found))


def _of_all(queries: int, judgement: Judgement, ahead: Array) -> Array:
    """Ranks of all queries, -1 of those that are not judged."""
    every = np.full(queries, -1, np.int64)
    every[judgement.queries] = ahead
    return every


def _fitting(shape: tuple[int, int], image_of_caption: Any, relevance: Any) -> tuple[Array, Array]:
    """Check what fits scores of ``shape`` (I, T), and name the fitting pairs."""
    images, captions = shape
    if image_of_caption is not None:
        source = as_array(image_of_caption)
        if source.shape != (captions,) or source.dtype.kind not in "iu":
            raise ValueError(
                f"image_of_caption must hold one integer per caption, shape ({captions},), "
                f"got {source.dtype} {source.shape}"
            )
        if source.min() < 0 or source.max() >= images:
            raise ValueError(f"image_of_caption must lie in [0, {images}), the range of pictures")
        if relevance is None:
            return source, np.arange(captions)
    fits = as_array(relevance)
    if fits.shape != shape or fits.dtype != np.bool_:
        raise ValueError(
            f"relevance must be bool of the scores' shape {shape}, got {fits.dtype} {fits.shape}"
        )
    if not fits.any():
        raise ValueError("relevance marks no pair at all: nothing can be measured")
    first, second = np.nonzero(fits)
    return first, second


def _judged(rank: Array) -> Array:
    judged = np.asarray(rank[rank >= 0])
    if not judged.size:
        raise ValueError("no query has a positive: nothing can be measured")
    return judged
