"""Why a set was found: which query element met which gallery element, and its share of the score.

A similarity is a function S of the cosines c_ij between the elements of both sets. Its derivatives
w_ij = dS/dc_ij say how much each pair counts: none is negative, and they sum to 1 (but for maxsim
as a sum, where they sum to K, and for mp). The share of a pair is its part of all weights, and

    S = sum_ij w_ij c_ij + remainder

holds exactly: the contribution of a pair is w_ij c_ij, and the remainder is what no pair has alone.
It is 0 for chamfer, mil and maxsim. For smooth_chamfer, with p_i. the softmax of alpha c over row i
and q_.j that over column j, it is made of their entropies H,

    remainder = 1/(2 alpha K) sum_i H(p_i.) + 1/(2 alpha L) sum_j H(q_.j),

between 0 (one pair decides in every row and column) and (ln K + ln L) / (2 alpha) (all pairs are
alike), less that bound with `log_mean`. Weights of equal cosines are equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from divse.search.snapshot import Snapshot
from divse.sets import Array, EmbeddingSets, as_tensor, lengths_mask
from divse.similarity.inputs import read_parameters
from divse.similarity.table import get_similarity


class Pair(NamedTuple):
    """A query element and a gallery element, counted from 0, and what they add to a score."""

    query: int
    gallery: int
    cosine: float
    share: float
    contribution: float


@dataclass(frozen=True, eq=False)
class HitExplanation:
    """One hit: `cosines` and `weights` (K, L) of real elements, fp64, its score and remainder."""

    position: int
    score: float
    cosines: np.ndarray
    weights: np.ndarray

    @property
    def shares(self) -> np.ndarray:
        """Each pair's part (K, L) of all weights; they sum to 1."""
        return np.asarray(self.weights / self.weights.sum())

    @property
    def contributions(self) -> np.ndarray:
        """What each pair (K, L) adds; with the remainder they sum to the score."""
        return np.asarray(self.weights * self.cosines)

    @property
    def remainder(self) -> float:
        """What of the score belongs to no single pair."""
        return self.score - float(self.contributions.sum())

    def pairs(self, most: int | None = None) -> list[Pair]:
        """The pairs that count, by share, the first `most` of them."""
        shares = self.shares
        order = np.argsort(-shares, axis=None, kind="stable")[:most]
        return [self._pair(int(flat)) for flat in order if shares.flat[flat] > 0]

    def matches(self) -> list[Pair]:
        """For each query element the pair of it that counts most (K)."""
        width = self.cosines.shape[1]
        # Where a query element counts for nothing, its best cosine says what it met.
        best = np.lexsort((self.cosines, self.shares), axis=1)[:, -1]
        return [self._pair(row * width + int(column)) for row, column in enumerate(best)]

    def _pair(self, flat: int) -> Pair:
        row, column = divmod(flat, self.cosines.shape[1])
        values = (self.cosines, self.shares, self.contributions)
        cosine, share, contribution = (float(value[row, column]) for value in values)
        return Pair(row, column, cosine, share, contribution)

    def to_dict(self, most: int | None = None) -> dict[str, Any]:
        """Return it ready for JSON, with the first `most` pairs."""
        return {
            "cosines": np.round(self.cosines, 6).tolist(),
            "weights": np.round(self.weights, 6).tolist(),
            "remainder": round(self.remainder, 6),
            "matches": [_rounded(pair) for pair in self.matches()],
            "pairs": [_rounded(pair) for pair in self.pairs(most)],
        }


def _rounded(pair: Pair) -> dict[str, float]:
    return {name: round(value, 6) for name, value in pair._asdict().items()}


def explain_hits(
    queries: EmbeddingSets | Array,
    gallery: Snapshot | EmbeddingSets | Array,
    positions: Array | None = None,
    similarity: str = "smooth_chamfer",
    *,
    ids: Any = None,
    alpha: float = 16.0,
    log_mean: bool = False,
    **parameters: Any,
) -> list[list[HitExplanation]]:
    """Explain the hits of each query, in their order.

    Args:
        queries: (B, K, D).
        gallery: a gallery, or sets in memory (N, L, D).
        positions: (B, topk) int64 positions of the hits in the gallery, as
            `Searcher.search_positions` or `divse.search` gives them; -1 = none, passed over.
        similarity: as in `divse.score`, and `alpha`, `log_mean` and `parameters` too.
        ids: (B, topk) ids of the hits, as `Searcher.search` gives them, in place of positions.

    Computed in fp64 from the stored elements, by the derivative of the reference.
    """
    chosen = get_similarity(similarity)
    options = read_parameters(chosen, alpha, log_mean, parameters)
    asked = queries if isinstance(queries, EmbeddingSets) else EmbeddingSets.of(queries)
    places = _places(gallery, positions, ids)
    if places.ndim != 2 or len(places) != len(asked) or places.dtype.kind not in "iu":
        raise ValueError(
            f"positions: got {places.dtype} {places.shape}, expected whole numbers of shape "
            f"({len(asked)}, topk)"
        )
    found = []
    for number, row in enumerate(places):
        row = row[row >= 0]
        hits = _taken(gallery, row) if len(row) else None
        query = asked[number]
        found.append([] if hits is None else _explained(query, hits, row, chosen.reduce, options))
    return found


def _places(gallery: Any, positions: Array | None, ids: Any) -> np.ndarray:
    """Positions (B, topk), given as such or by the ids of a gallery."""
    if (positions is None) == (ids is None):
        raise ValueError("give the hits by their positions, or by their ids: one of them")
    if positions is not None:
        return np.asarray(as_tensor(positions, name="positions").cpu())
    if not isinstance(gallery, Snapshot):
        raise TypeError("ids are those of a gallery on disk: give positions for sets in memory")
    names = np.asarray(ids)
    known = np.flatnonzero(gallery.with_ids(np.unique(names.reshape(-1))))
    places = dict(zip(gallery.take_ids(known).tolist(), known.tolist(), strict=True))
    found = [places[name] for name in names.reshape(-1).tolist()]
    return np.array(found, dtype=np.int64).reshape(names.shape)


def _explained(
    query: EmbeddingSets, hits: EmbeddingSets, positions: np.ndarray, reduce: Any, options: Any
) -> list[HitExplanation]:
    """Explain the hits (n, L, D) of one query (1, K, D)."""
    x, rows = _clean(query)
    y, columns = _clean(hits)
    cosines = (x @ y.mT).requires_grad_()  # (n, K, L)
    with torch.enable_grad():
        scores = reduce(cosines, rows, columns, **options)
        (weights,) = torch.autograd.grad(scores.sum(), cosines)
    k = x.shape[1] if rows is None else int(rows.sum())
    sizes = [y.shape[1]] * len(y) if columns is None else columns.sum(1).tolist()
    return [
        HitExplanation(int(place), score, c[:k, :size].numpy(), w[:k, :size].numpy())
        for place, score, c, w, size in zip(
            positions, scores.tolist(), cosines.detach(), weights, sizes, strict=True
        )
    ]


def _clean(sets: EmbeddingSets) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Elements in fp64 on the host, padding zero, and the mask of real ones."""
    host = sets.torch("cpu")
    values = as_tensor(host.values).double()
    mask = lengths_mask(None if host.lengths is None else as_tensor(host.lengths), host.k)
    return (values if mask is None else torch.where(mask[..., None], values, 0.0)), mask


def _taken(gallery: Snapshot | EmbeddingSets | Array, positions: np.ndarray) -> EmbeddingSets:
    """The sets at positions (n,) of a gallery on disk or in memory."""
    if isinstance(gallery, Snapshot):
        return gallery.sets(positions)
    if len(gallery) <= positions.max():
        raise IndexError(f"positions: got {positions.max()}, the gallery has {len(gallery)} sets")
    if isinstance(gallery, EmbeddingSets):
        return gallery[positions]
    return EmbeddingSets.of(gallery[positions])
