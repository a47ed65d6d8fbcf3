"""divse: the plans of its Searcher over a gallery on disk, by its public API alone.

plan="auto" is `divse.search.tune` and then what it found, chosen by queries that tune draws itself,
or by a sample that lies beside the gallery: the only peer that does not see the queries before
it is measured.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from protocol import DEPTHS, PROBED_SHARES, Array, Peer, Setting, serve

import divse.search
from divse.search import Gallery, Searcher
from divse.sets import EmbeddingSets

BLOCK = 10_000  # sets read at a time while building


class DivsePlans(Peer):
    """One plan over a gallery of one precision."""

    def __init__(
        self, plan: str, similarity: str = "smooth_chamfer", dtype: str = "float16"
    ) -> None:
        self.plan, self.similarity, self.stored = plan, similarity, dtype
        self.exact = plan in ("exact", "certified")

    def versions(self) -> dict[str, str]:
        return {"divse": divse.__version__, "torch": torch.__version__}

    def build(self, gallery: Path, folder: Path) -> None:
        sets = np.load(gallery, mmap_mode="r")
        blocks = (EmbeddingSets(sets[i : i + BLOCK]) for i in range(0, len(sets), BLOCK))
        codes = self.stored == "float16"
        made = Gallery.create(folder / "gallery", blocks, dtype=self.stored, codes=codes)
        if self.plan in ("prefilter", "auto"):
            made.build_index()

    def open(self, gallery: Path, folder: Path) -> None:
        opened = Gallery.open(folder / "gallery")
        tuned = folder / f"tuned-{self.similarity}"
        if self.plan == "auto" and not tuned.exists():
            sample = gallery.with_name("sample.npy")
            queries = EmbeddingSets(np.load(sample)) if sample.exists() else None
            options = {"similarity": self.similarity, "device": "cpu"}
            divse.search.tune(opened, recall=0.99, queries=queries, **options)
            tuned.touch()
        self.searcher = Searcher(opened, device="cpu")

    def ladders(self) -> list[list[Setting]]:
        if self.plan != "prefilter":
            return [[{}]]
        depths = [d for d in DEPTHS if d <= self.searcher.gallery.manifest.elements]
        everywhere = [{"depth": depth} for depth in depths]
        cells = re.match(r"Cells(\d+)", str(self.searcher.explain("prefilter").index))
        if cells is None:
            return [everywhere]
        probes = dict.fromkeys(max(4, int(cells[1]) // share) for share in PROBED_SHARES)
        return [everywhere, *([{"probe": p, "depth": depth} for depth in depths] for p in probes)]

    def search(self, queries: Array, topk: int, **setting: Any) -> tuple[Array, Array]:
        sets = EmbeddingSets(queries)
        found = self.searcher.search(sets, topk, self.plan, similarity=self.similarity, **setting)
        return found.scores, found.ids


if __name__ == "__main__":
    serve(DivsePlans)
