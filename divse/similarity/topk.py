"""The best k of scores, merged block by block; equal scores by position, lowest first."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from divse.sets import Array


class TopK(NamedTuple):
    """Results of a search: ``scores`` (B, topk), best first, and ``ids`` (B, topk) positions."""

    scores: Array
    ids: Array


def ordered_topk(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k best of the last axis of fp32 or fp64 ``scores``, ties by position.

    For fp32 the order is that of one integer: the score's bits, made monotone, above the reversed
    position. torch.topk alone may return equal scores in any order. Not a number counts as worst.
    """
    scores = torch.where(scores.isnan(), -torch.inf, scores)
    if scores.dtype != torch.float32:
        best, ids = torch.sort(scores, dim=-1, descending=True, stable=True)
        return best[..., :k], ids[..., :k]
    bits = (scores + 0.0).view(torch.int32)  # adding 0.0 turns -0.0 into 0.0
    monotone = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(torch.int64)
    position = torch.arange(scores.shape[-1], device=scores.device)
    ids = torch.topk((monotone << 32) + (0xFFFFFFFF - position), k, dim=-1).values
    ids = 0xFFFFFFFF - (ids & 0xFFFFFFFF)
    return scores.gather(-1, ids), ids


class RunningTopK:
    """The best ``k`` (score, id) pairs of every query seen so far, fed in order of id."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.scores: Tensor | None = None
        self.ids: Tensor | None = None

    def add(self, scores: Tensor, ids: Tensor) -> None:
        """Take in ``scores`` (B, n) of the positions ``ids`` (n,), later than all before."""
        best, where = ordered_topk(scores, min(self.k, scores.shape[-1]))
        found = ids[where]
        if self.scores is not None and self.ids is not None:
            joined = torch.cat([self.scores, best], -1)
            all_ids = torch.cat([self.ids, found], -1)
            best, where = ordered_topk(joined, min(self.k, joined.shape[-1]))
            found = all_ids.gather(-1, where)
        self.scores, self.ids = best, found
