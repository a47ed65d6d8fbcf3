"""lancedb: a multivector column (MaxSim) with an index, its candidates refined by exact MaxSim."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
from protocol import Array, Peer, Setting, serve, versions_of

BLOCK = 1 << 13
INDEX_FROM = 1 << 15  # elements; below, lancedb compares with all of them
PROBES = (10, 20, 40, 80, 160)
REFINED = (1, 2, 5, 10, 20, 50, 100, 200)


class MultivectorLancedb(Peer):
    """IVF_PQ, its default index; knobs: partitions probed, results refined for each wanted."""

    similarity = "maxsim"

    def versions(self) -> dict[str, str]:
        return versions_of("lancedb", "pyarrow")

    def build(self, gallery: Path, folder: Path) -> None:
        sets = np.load(gallery, mmap_mode="r")
        dim = sets.shape[-1]
        kind = pa.list_(pa.list_(pa.float32(), dim))
        schema = pa.schema({"place": pa.int64(), "vector": kind})

        def batches() -> Iterator[pa.RecordBatch]:
            for first in range(0, len(sets), BLOCK):
                part = np.ascontiguousarray(sets[first : first + BLOCK])
                inner = pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), dim)
                offsets = np.arange(0, len(inner) + 1, sets.shape[1], dtype=np.int32)
                places = pa.array(np.arange(first, first + len(part)))
                lists = pa.ListArray.from_arrays(pa.array(offsets), inner)
                yield pa.RecordBatch.from_arrays([places, lists], schema=schema)

        reader = pa.RecordBatchReader.from_batches(schema, batches())
        table = lancedb.connect(folder).create_table("sets", reader)
        if len(sets) * sets.shape[1] >= INDEX_FROM:
            table.create_index(metric="cosine", vector_column_name="vector", index_type="IVF_PQ")

    def open(self, gallery: Path, folder: Path) -> None:
        self.table = lancedb.connect(folder).open_table("sets")

    def ladders(self) -> list[list[Setting]]:
        if not self.table.list_indices():
            return [[{}]]
        return [[{"nprobes": n, "refine_factor": r} for r in REFINED] for n in PROBES]

    def search(self, queries: Array, topk: int, **setting: Any) -> tuple[Array, Array]:
        scores = np.full((len(queries), topk), -np.inf, dtype=np.float32)
        ids = np.full((len(queries), topk), -1, dtype=np.int64)
        for row, query in enumerate(queries):
            asked = self.table.search(query).metric("cosine").select(["place", "_distance"])
            if setting:
                asked = asked.nprobes(setting["nprobes"])
                asked = asked.refine_factor(setting["refine_factor"])
            found = asked.limit(topk).to_arrow()
            # lancedb's distance of sets is the sum over the query's elements of 1 - cosine.
            scores[row, : len(found)] = queries.shape[1] - found["_distance"].to_numpy()
            ids[row, : len(found)] = found["place"].to_numpy()
        return scores, ids


if __name__ == "__main__":
    serve(MultivectorLancedb)
