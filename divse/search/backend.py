"""Who computes a searcher's scores: implementation, device, the gallery in its memory."""

from __future__ import annotations

from collections.abc import Callable

import torch

from divse.search.gallery import Gallery
from divse.search.resident import Resident, fits, load
from divse.search.scan import Scoring
from divse.search.stored_scan import why_not_certified
from divse.sets import EmbeddingSets
from divse.similarity.api import explain


class Backend:
    """Computes scores of one gallery on one device; `resident` as in `Searcher`."""

    def __init__(self, gallery: Gallery, device: torch.device, resident: bool | None) -> None:
        self.gallery, self.device = gallery, device
        self._may_reside = fits(gallery, device) if resident is None else resident
        self._resident: Resident | None = None
        self._names: dict[tuple[str, str], str] = {}

    def name(self, scoring: Scoring) -> str:
        """Return which implementation serves a scan, and why others do not."""
        key = (scoring.similarity, scoring.impl)
        if key not in self._names:
            kind = getattr(torch, self.gallery.manifest.dtype)
            shape = (1, max(1, self.gallery.k), self.gallery.dim)
            one = EmbeddingSets(torch.ones(shape, dtype=kind, device=self.device))
            self._names[key] = str(explain(one, one, key[0], operation="search", impl=key[1]))
        return self._names[key]

    def why_not_certified(self, scoring: Scoring) -> str | None:
        """Return why the plan "certified" cannot serve, or None if it can."""
        if scoring.impl == "reference":
            return "impl='reference' has no certified scan: it scores every set"
        by_triton = self._by_triton(scoring)
        impl = "triton" if by_triton else "native"
        reason = why_not_certified(self.gallery, scoring.similarity, impl)
        if reason is None and self.device.type != "cpu":
            if not by_triton:
                return f"the C++ kernels run on the CPU and the searcher on {self.device}"
            if not self._may_reside:
                return f"the gallery is not in the memory of {self.device}"
        return reason

    def resident(
        self, plan: str, scoring: Scoring, progress: Callable[[int], object] | None
    ) -> Resident | None:
        """Return the gallery in the device's memory, copied there at the first use, or None.

        On a CPU only the certified scan of the Triton kernels (in their interpreter) needs it.
        """
        needed = self.device.type != "cpu" and self._may_reside
        if plan == "certified" and self._by_triton(scoring):
            needed = needed or self.why_not_certified(scoring) is None
        if not needed:
            return None
        if self._resident is None:
            self._resident = load(self.gallery, self.device, progress)
        return self._resident

    def _by_triton(self, scoring: Scoring) -> bool:
        """Whether the Triton kernels do the certified scan."""
        if scoring.impl == "auto":
            return self.device.type != "cpu"
        return scoring.impl == "triton"
