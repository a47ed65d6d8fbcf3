"""mAP@R and R-Precision: how well *all* fitting pairs are ranked, not only the best of them.

Shapes as in `divse.evaluation.retrieval`; ties count against the model here too.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from divse.evaluation.retrieval import Array, Positives, as_array, checked


def map_at_r(scores: Any, relevance: Any) -> dict[str, float]:
    """mAP@R and R-Precision in percent, both ways, against all fitting pairs (I, T).

    R is the number of positives of a query. R-Precision is their share among its first R results;
    AP@R is the mean over the first R places of the precision at each place that holds a positive.
    """
    result = {}
    matrix, fits = as_array(scores), as_array(relevance)
    Positives(matrix.shape, np.zeros(matrix.shape[-1], np.int64), fits)
    for direction, s, r in (("i2t", matrix, fits), ("t2i", matrix.T, fits.T)):
        per_query = np.concatenate(
            [_precision(checked(s[i : i + 512]), r[i : i + 512]) for i in range(0, len(s), 512)]
        )
        average, r_precision = 100.0 * np.nanmean(per_query, axis=0)
        result[f"{direction}_map_at_r"] = float(average)
        result[f"{direction}_r_precision"] = float(r_precision)
    return result


def _precision(scores: Array, relevance: Array) -> Array:
    """(queries, 2): AP@R and R-Precision of each row; NaN for a row without positives."""
    order = np.lexsort((relevance, -scores), axis=-1)  # at equal scores negatives come first
    hits = np.take_along_axis(relevance, order, axis=1)
    place = np.arange(1, hits.shape[1] + 1)
    total = relevance.sum(1, keepdims=True)
    hits &= place <= total
    precision = np.cumsum(hits, axis=1) / place
    sums = np.stack([(precision * hits).sum(1), hits.sum(1)], axis=1)
    return np.asarray(np.divide(sums, total, out=np.full(sums.shape, np.nan), where=total > 0))
