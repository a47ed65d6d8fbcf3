"""qdrant-client in its local mode: every multivector compared by MaxSim, in Python and numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from protocol import Array, Peer, serve, versions_of
from qdrant_client import QdrantClient, models

BLOCK = 1000


class MultivectorQdrant(Peer):
    """The local mode has no index, so no knob; it keeps all points in memory."""

    similarity, exact = "maxsim", True

    def versions(self) -> dict[str, str]:
        return versions_of("qdrant-client", "numpy")

    def build(self, gallery: Path, folder: Path) -> None:
        sets = np.load(gallery, mmap_mode="r")
        client = QdrantClient(path=str(folder / "qdrant"))
        multivector = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
        client.create_collection(
            "sets",
            vectors_config=models.VectorParams(
                size=sets.shape[-1], distance=models.Distance.COSINE, multivector_config=multivector
            ),
        )
        for first in range(0, len(sets), BLOCK):
            part = sets[first : first + BLOCK]
            places = range(first, first + len(part))
            points = models.Batch(ids=list(places), vectors=part.tolist())
            client.upsert("sets", points=points)
        client.close()

    def open(self, gallery: Path, folder: Path) -> None:
        self.client = QdrantClient(path=str(folder / "qdrant"))

    def search(self, queries: Array, topk: int, **setting: Any) -> tuple[Array, Array]:
        found = [
            self.client.query_points("sets", query=query.tolist(), limit=topk).points
            for query in queries
        ]
        scores = np.array([[point.score for point in row] for row in found], dtype=np.float32)
        return scores, np.array([[point.id for point in row] for row in found], dtype=np.int64)


if __name__ == "__main__":
    serve(MultivectorQdrant)
