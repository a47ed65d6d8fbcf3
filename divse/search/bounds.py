r"""What a set that no element search returned can score at most.

For every element x_i of a query, a search over all elements of the gallery returned the m nearest.
Let t_i be the least cosine among these. A set is unseen if none of its elements y_j was returned
for any x_i; then

    c_ij = <x_i, y_j> <= t_i        for all i and j.

Smooth-Chamfer, Chamfer, MaxSim and MIL do not decrease in any cosine, so an unseen set of L
elements scores at most what the matrix with c_ij = t_i for all j would score. For Smooth-Chamfer
with K query elements that is

    1/(2 a K) sum_i (a t_i + ln L)  +  1/(2 a) ln sum_i exp(a t_i)
    =  mean_i t_i / 2  +  ln L / (2 a)  +  1/(2 a) ln sum_i exp(a t_i),

which grows with L: the largest set bounds them all (with `log_mean` the terms ln L and ln K
vanish). It is Chamfer's (mean_i t_i + max_i t_i) / 2 in the limit, MaxSim's sum_i t_i, MIL's
max_i t_i, none of which depend on L.

All seen sets are scored exactly. If the k-th best of these scores is above the bound, no unseen set
is among the best k: the answer is proven. Were fewer than m elements returned for some x_i, all
elements of the gallery were, and no set is unseen.

t_i must come from a search that misses nothing: exact inner products with all elements. An inverted
file that looks into some of its lists bounds nothing (its lists have no radius that would help in
many dimensions), nor do products of quantised elements without a bound of their error.

Rounding. The search and the kernels sum D products in fp32: each cosine is within (D + 8) u of the
exact one, u = 2^-24, for vectors of norm up to 1 + 2^-7; `slack` takes twice that and more. The
logarithms and sums of the kernels add some roundings of the score and of 1 / a.
"""

from __future__ import annotations

import numpy as np
import torch

from divse.search.scan import Scoring
from divse.similarity.certified import SIMILARITIES as MONOTONE
from divse.similarity.inputs import read_parameters
from divse.similarity.table import get_similarity

UNIT_ROUNDOFF = 2.0**-24


def bounds_unseen(scoring: Scoring) -> bool:
    """Whether the similarity never decreases in a cosine."""
    return scoring.similarity in MONOTONE


def unseen_bound(
    limits: np.ndarray, lengths: np.ndarray | None, largest: int, dim: int, scoring: Scoring
) -> np.ndarray:
    """Return upper bounds (B,) of the scores of unseen sets of up to `largest` elements.

    `limits` (B, K) are the t_i in fp32, -inf where all elements were returned; `lengths` (B,) says
    how many elements a query has.
    """
    real = np.ones(limits.shape, dtype=bool)
    if lengths is not None:
        real = np.arange(limits.shape[1]) < lengths[:, None]
    everything = (np.isneginf(limits) & real).any(1)
    raised = np.where(np.isfinite(limits), limits, 0).astype(np.float64)
    raised += 3 * (dim + 16) * UNIT_ROUNDOFF
    cosines = torch.from_numpy(raised)[:, :, None].expand(-1, -1, largest)
    similarity = get_similarity(scoring.similarity)
    given = read_parameters(similarity, scoring.alpha, scoring.log_mean, scoring.parameters)
    bound = similarity.reduce(cosines, torch.from_numpy(real), None, **given).numpy()
    roundings = np.abs(bound) + 1 / min(1.0, float(scoring.alpha))
    return np.where(everything, -np.inf, bound + 64 * UNIT_ROUNDOFF * roundings)
