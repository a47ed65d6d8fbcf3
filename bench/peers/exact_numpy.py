"""The yardstick: every set scored in fp32 by numpy, the gallery in memory.

With {"candidates": true} it orders by MaxSim first and scores the best of them by Smooth-Chamfer,
which is what one does beside an engine that only has MaxSim; how many is its knob.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from plain import all_scores, best, rerank
from protocol import DEPTHS, Array, Peer, Setting, serve


class ExactNumpy(Peer):
    """Scores (B, N), then the best of them."""

    reads_gallery = True

    def __init__(self, similarity: str = "smooth_chamfer", candidates: bool = False) -> None:
        self.similarity, self.candidates, self.exact = similarity, candidates, not candidates

    def versions(self) -> dict[str, str]:
        return {"numpy": np.__version__}

    def open(self, gallery: Path, folder: Path) -> None:
        self.gallery = np.load(gallery)

    def ladders(self) -> list[list[Setting]]:
        if not self.candidates:
            return [[{}]]
        return [[{"candidates": depth} for depth in DEPTHS if depth <= len(self.gallery)]]

    def search(self, queries: Array, topk: int, **setting: Any) -> tuple[Array, Array]:
        if not self.candidates:
            return best(all_scores(self.similarity, queries, self.gallery), topk)
        proposed = best(all_scores("maxsim", queries, self.gallery), setting["candidates"])[1]
        return rerank(queries, self.gallery, list(proposed), topk)


if __name__ == "__main__":
    serve(ExactNumpy)
