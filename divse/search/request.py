"""One search as the plans see it, and what each of them returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from divse.search.filters import Selection
from divse.search.reports import Work
from divse.search.resident import Resident
from divse.search.scan import Scoring
from divse.search.snapshot import Snapshot
from divse.sets import EmbeddingSets

Tell = Callable[[str, int], Callable[[int], object] | None]


class Found(NamedTuple):
    """`scores` fp32 and `positions` (B, topk), best first; `certified` (B,) bool: proven exact."""

    scores: np.ndarray
    positions: np.ndarray
    certified: np.ndarray

    @classmethod
    def of(cls, scores: torch.Tensor, positions: torch.Tensor, certified: bool) -> Found:
        """Bring the results of a scan to the host."""
        proven = np.full(len(scores), certified)
        return cls(scores.cpu().numpy(), positions.cpu().numpy(), proven)


@dataclass(frozen=True)
class Request:
    """`queries` (B, K, D) and the best `topk` sets of a gallery to find for each of them.

    `selection` is what a filter leaves: at least `topk` sets. Scores are computed on `device`, of
    the gallery in its memory if that is `resident`. `tell(what, total)` returns what hears of
    progress; what is done is noted in `work`.
    """

    gallery: Snapshot
    queries: EmbeddingSets
    topk: int
    scoring: Scoring
    selection: Selection | None
    device: torch.device
    resident: Resident | None
    tell: Tell
    work: Work

    def of(self, rows: np.ndarray) -> Request:
        """Return the same request for some of the queries."""
        return replace(self, queries=self.queries[rows])

    @property
    def on_device(self) -> EmbeddingSets:
        """The queries as tensors on the device."""
        return self.queries.torch(self.device)

    @property
    def survivors(self) -> int:
        """Sets that may be found."""
        return len(self.gallery) if self.selection is None else self.selection.count

    def bytes_of(self, sets: int) -> int:
        """Bytes of the embeddings of so many sets, about."""
        manifest = self.gallery.manifest
        each = manifest.dim * np.dtype(manifest.dtype).itemsize * manifest.elements
        return int(each * sets / max(1, manifest.sets))

    def by_codes(self, sets: int) -> int:
        """Bytes of the codes, scales and residuals of so many sets, about."""
        manifest = self.gallery.manifest
        return int((manifest.dim + 8) * manifest.elements * sets / max(1, manifest.sets))


def none_left(queries: Any) -> Found:
    """Return the answer where no set passes the filter: no columns."""
    shape = (len(queries), 0)
    return Found(
        np.empty(shape, np.float32), np.empty(shape, np.int64), np.ones(len(queries), bool)
    )
