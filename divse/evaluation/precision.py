"""mAP@R and R-Precision: how well *all* fitting pairs are ranked, not only the best of them.

Shapes as in `divse.evaluation.retrieval`; ties count against the model here too.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from divse.evaluation.retrieval import TIE, Array, Positives, as_array, checked


def map_at_r(scores: Any, relevance: Any) -> dict[str, float]:
    """mAP@R and R-Precision in percent, both ways, against all fitting pairs (I, T).

    R is the number of positives of a query. R-Precision is their share among its first R results;
    AP@R is the mean over the first R places of the precision at each place that holds a positive.
    """
    matrix, fits = checked(as_array(scores)), as_array(relevance)
    Positives(matrix.shape, np.zeros(matrix.shape[-1], np.int64), fits)
    result = {}
    for direction, rows, right in (("i2t", matrix, fits), ("t2i", matrix.T, fits.T)):
        judged = [precision(s, r) for s, r in zip(rows, right, strict=True) if r.any()]
        average, r_precision = 100.0 * np.mean(judged, axis=0)
        result[f"{direction}_map_at_r"] = float(average)
        result[f"{direction}_r_precision"] = float(r_precision)
    return result


def precision(scores: Array, relevance: Array) -> tuple[float, float]:
    """AP@R and R-Precision of one query: its scores and relevance, both (N,)."""
    positives = np.sort(scores[relevance])[::-1]
    negatives, total = scores[~relevance], len(positives)
    if len(negatives) > total:  # only the first R places count, so only the R best negatives do
        negatives = np.partition(negatives, -total)[-total:]
    falling = np.sort(negatives)[::-1]
    needed = positives - TIE * np.abs(positives)
    ahead = np.searchsorted(-falling, -needed, side="right")  # negatives that are level or better
    found = np.arange(1, total + 1)  # positives down to each one, itself included
    place = ahead + found
    hit = place <= total
    return float((hit * found / place).sum() / total), float(hit.mean())
