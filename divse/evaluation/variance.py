"""How far the elements of a set spread: the circular variance 1 - |mean of its unit vectors|.

0 when all elements point one way (the set has collapsed into a single vector), near 1 when they
cancel. Its logarithm, averaged inside the log over sets, is the ``log Var`` column of the paper.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from divse.sets import EmbeddingSets


def circular_variance(sets: EmbeddingSets) -> npt.NDArray[Any]:
    """(N,) float64: 1 - |mean of the unit elements| of each set, within [0, 1]."""
    held = sets.numpy()
    values = np.asarray(held.values, np.float64)  # fp32 would drown variances below 1e-7
    valid = np.ones(values.shape[:2], bool)
    if held.lengths is not None:
        valid = np.arange(held.k) < np.asarray(held.lengths)[:, None]
    values = np.where(valid[..., None], values, 0.0)  # what lies past a length never matters
    norms = np.linalg.norm(values, axis=-1, keepdims=True)
    unit = np.divide(values, norms, out=np.zeros_like(values), where=norms > 0)
    resultant = np.linalg.norm(unit.sum(1), axis=-1) / valid.sum(1)
    variance = np.clip(1.0 - resultant, 0.0, 1.0)
    return np.where(valid.sum(1) == 1, 0.0, variance)  # rounding must not spread a single vector


def log_variance(sets: EmbeddingSets) -> float:
    """Natural log of the mean circular variance over the sets; -inf when none spreads at all."""
    mean = float(circular_variance(sets).mean())
    return math.log(mean) if mean > 0 else -math.inf
