"""usearch: an HNSW graph over all elements, then a plain numpy re-ranking of their sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from plain import owners, rerank
from protocol import DEPTHS, Array, Peer, Setting, serve, versions_of
from usearch.index import Index

BLOCK = 1 << 16


class ElementsUsearch(Peer):
    """A graph of half-precision elements; the number of neighbours is also the search's width."""

    reads_gallery = True

    def versions(self) -> dict[str, str]:
        return versions_of("usearch", "numpy")

    def build(self, gallery: Path, folder: Path) -> None:
        sets = np.load(gallery, mmap_mode="r")
        elements = sets.reshape(-1, sets.shape[-1])
        index = Index(ndim=sets.shape[-1], metric="ip", dtype="f16")
        for first in range(0, len(elements), BLOCK):
            part = np.ascontiguousarray(elements[first : first + BLOCK])
            index.add(np.arange(first, first + len(part)), part)
        index.save(str(folder / "elements.usearch"))

    def open(self, gallery: Path, folder: Path) -> None:
        self.gallery = np.load(gallery, mmap_mode="r")
        self.index = Index.restore(str(folder / "elements.usearch"))

    def ladders(self) -> list[list[Setting]]:
        return [[{"depth": depth} for depth in DEPTHS if depth <= len(self.index)]]

    def search(self, queries: Array, topk: int, **setting: Any) -> tuple[Array, Array]:
        depth = setting["depth"]
        self.index.expansion_search = max(64, depth)
        matches = self.index.search(queries.reshape(-1, queries.shape[-1]), depth)
        counts = np.atleast_1d(getattr(matches, "counts", len(matches)))[:, None]
        keys = np.atleast_2d(matches.keys).astype(np.int64)
        found = np.where(np.arange(keys.shape[1]) < counts, keys, -1)
        return rerank(
            queries, self.gallery, owners(found, self.gallery.shape[1], len(queries)), topk
        )


if __name__ == "__main__":
    serve(ElementsUsearch)
