"""faiss over all elements, then a plain numpy re-ranking of the sets that own the nearest ones."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from plain import owners, rerank
from protocol import DEPTHS, PROBED_SHARES, Array, Peer, Setting, serve, versions_of

SAMPLED = 64  # elements for each list of an inverted file, to train it
BLOCK = 1 << 16


class ElementsFaiss(Peer):
    """An inverted file with codes of one kind ("SQ8", "RaBitQ", "Flat")."""

    reads_gallery = True

    def __init__(self, codes: str = "SQ8") -> None:
        self.codes = codes

    def versions(self) -> dict[str, str]:
        return versions_of("faiss-cpu", "numpy")

    def build(self, gallery: Path, folder: Path) -> None:
        sets = np.load(gallery, mmap_mode="r")
        elements = sets.reshape(-1, sets.shape[-1])
        lists = 1 << round(math.log2(math.sqrt(len(elements))))
        metric = faiss.METRIC_INNER_PRODUCT
        index = faiss.index_factory(sets.shape[-1], f"IVF{lists},{self.codes}", metric)
        count = min(len(elements), SAMPLED * lists)
        drawn = np.random.default_rng(0).choice(len(elements), count, replace=False)
        index.train(np.ascontiguousarray(elements[np.sort(drawn)]))
        for first in range(0, len(elements), BLOCK):
            index.add(np.ascontiguousarray(elements[first : first + BLOCK]))
        faiss.write_index(index, str(folder / "elements.faiss"))

    def open(self, gallery: Path, folder: Path) -> None:
        self.gallery = np.load(gallery, mmap_mode="r")
        self.index = faiss.read_index(str(folder / "elements.faiss"))

    def ladders(self) -> list[list[Setting]]:
        probes = dict.fromkeys(max(4, self.index.nlist // share) for share in PROBED_SHARES)
        depths = [depth for depth in DEPTHS if depth <= self.index.ntotal]
        return [[{"nprobe": p, "depth": depth} for depth in depths] for p in probes]

    def search(self, queries: Array, topk: int, **setting: Any) -> tuple[Array, Array]:
        self.index.nprobe = setting["nprobe"]
        elements = queries.reshape(-1, queries.shape[-1])
        found = self.index.search(elements, setting["depth"])[1]
        proposed = owners(found, self.gallery.shape[1], len(queries))
        return rerank(queries, self.gallery, proposed, topk)


if __name__ == "__main__":
    serve(ElementsFaiss)
