r"""The specification: every similarity between two sets, in plain torch.

Cosines c_ij = <x_i, y_j> between the K elements x of a query set and the L elements y of a gallery
set; alpha is the smoothness. Sums and means run over real elements only.

    smooth_chamfer  1/(2 alpha K) sum_i log sum_j exp(alpha c_ij)
                  + 1/(2 alpha L) sum_j log sum_i exp(alpha c_ij)
                    (Kim, Kim, Kwak: "Improving Cross-Modal Retrieval with Set of Diverse
                    Embeddings", CVPR 2023; log of a sum, as published). With ``log_mean`` both
                    inner sums are means: a score then does not grow with the size of a set, by
                    -(ln K + ln L) / (2 alpha).
    chamfer         (mean_i max_j c_ij + mean_j max_i c_ij) / 2: the limit alpha -> infinity
    mil             max_ij c_ij (PVSE)
    mp              mean_ij sigmoid(scale c_ij + shift) (PCME; scale and shift are learned)
    maxsim          sum_i max_j c_ij (ColBERT), or its mean over i

Smooth-Chamfer lies between Chamfer and Chamfer + (ln K + ln L) / (2 alpha); its derivatives by the
cosines, E_ij (1/(2 K r_i) + 1/(2 L s_j)) with E = exp(alpha c), r and s its row and column sums,
are non-negative and sum to 1, so a score moves by at most the largest change of a cosine.

Every function here reduces cosines (..., K, L) to scores (...). ``rows`` (..., K) and ``columns``
(..., L) are masks of real elements, or None. All are clean in float64 and differentiable.
"""

from __future__ import annotations

import torch
from torch import Tensor

Mask = Tensor | None


def _masked(values: Tensor, mask: Mask, fill: float) -> Tensor:
    return values if mask is None else values.masked_fill(~mask, fill)


def _mean(values: Tensor, mask: Mask) -> Tensor:
    """Mean over the last axis of the real entries."""
    if mask is None:
        return values.mean(-1)
    return _masked(values, mask, 0.0).sum(-1) / mask.sum(-1)


def _inner(mask: Mask) -> Mask:
    return None if mask is None else mask[..., None, :]


def _log_count(values: Tensor, mask: Mask) -> Tensor:
    """Logarithm of the number of real entries of the last axis."""
    if mask is None:
        return torch.full((), values.shape[-1], dtype=values.dtype, device=values.device).log()
    return mask.sum(-1).to(values.dtype).log()


def smooth_chamfer(
    cosines: Tensor,
    rows: Mask = None,
    columns: Mask = None,
    *,
    alpha: float | Tensor = 16.0,
    log_mean: bool = False,
) -> Tensor:
    """Smooth-Chamfer similarity of cosines (..., K, L) -> (...); CVPR 2023, equation 4."""

    def side(c: Tensor, outer: Mask, inner: Mask) -> Tensor:
        exponents = _masked(alpha * c, _inner(inner), -torch.inf)
        smooth = _mean(torch.logsumexp(exponents, -1), outer)
        return smooth - _log_count(c, inner) if log_mean else smooth

    both = side(cosines, rows, columns) + side(cosines.mT, columns, rows)
    return both / (2 * alpha)


def _best(cosines: Tensor, columns: Mask) -> Tensor:
    return _masked(cosines, _inner(columns), -torch.inf).amax(-1)


def chamfer(cosines: Tensor, rows: Mask = None, columns: Mask = None) -> Tensor:
    """Chamfer similarity: the mean over both directions of the mean best cosine."""
    forward = _mean(_best(cosines, columns), rows)
    return (forward + _mean(_best(cosines.mT, rows), columns)) / 2


def mil(cosines: Tensor, rows: Mask = None, columns: Mask = None) -> Tensor:
    """Multiple-instance similarity: the best cosine of all pairs."""
    return _masked(_best(cosines, columns), rows, -torch.inf).amax(-1)


def mp(
    cosines: Tensor,
    rows: Mask = None,
    columns: Mask = None,
    *,
    scale: float | Tensor = 1.0,
    shift: float | Tensor = 0.0,
) -> Tensor:
    """Match probability: the mean over all pairs of sigmoid(scale c + shift)."""
    return _mean(_mean(torch.sigmoid(scale * cosines + shift), _inner(columns)), rows)


def maxsim(
    cosines: Tensor, rows: Mask = None, columns: Mask = None, *, reduction: str = "sum"
) -> Tensor:
    """MaxSim: the sum (or the mean) over query elements of their best cosine; one-sided."""
    if reduction not in ("sum", "mean"):
        raise ValueError(f"maxsim reduction: got {reduction!r}, expected 'sum' or 'mean'")
    best = _best(cosines, columns)
    return _mean(best, rows) if reduction == "mean" else _masked(best, rows, 0.0).sum(-1)
