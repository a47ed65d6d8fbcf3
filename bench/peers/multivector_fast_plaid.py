"""fast-plaid: PLAID's index of quantised residuals, ordered by an estimate of MaxSim."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fast_plaid.search import FastPlaid
from plain import rerank
from protocol import Array, Peer, Setting, serve, versions_of

PROBES = (4, 8, 16, 32, 64, 128)
SCORED = (256, 512, 1024, 2048, 4096, 8192, 16384)


class MultivectorFastPlaid(Peer):
    """Its default index; with {"rescore": true} its candidates are ordered by Smooth-Chamfer."""

    stored = None

    def __init__(self, rescore: bool = False) -> None:
        self.rescore = rescore
        self.similarity = "smooth_chamfer" if rescore else "maxsim"
        self.stored = "float32" if rescore else None
        self.reads_gallery = rescore
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

    def versions(self) -> dict[str, str]:
        return versions_of("fast-plaid", "torch")

    def build(self, gallery: Path, folder: Path) -> None:
        sets = torch.from_numpy(np.load(gallery))
        FastPlaid(str(folder / "plaid"), device="cpu").create(list(sets))

    def open(self, gallery: Path, folder: Path) -> None:
        self.gallery = np.load(gallery, mmap_mode="r")
        self.index = FastPlaid(str(folder / "plaid"), device="cpu")

    def ladders(self) -> list[list[Setting]]:
        if self.rescore:
            return [
                [
                    {"probe": p, "scored": 4 * c, "candidates": c}
                    for c in (50, 100, 200, 500, 1000, 2000)
                ]
                for p in PROBES
            ]
        return [[{"probe": p, "scored": s} for p in PROBES] for s in SCORED]

    def search(self, queries: Array, topk: int, **setting: Any) -> tuple[Array, Array]:
        wanted = setting.get("candidates", topk)
        found = self.index.search(
            torch.from_numpy(queries),
            top_k=wanted,
            n_full_scores=setting["scored"],
            n_ivf_probe=setting["probe"],
            show_progress=False,
        )
        if self.rescore:
            proposed = [np.array(sorted({i for i, _ in row}), dtype=np.int64) for row in found]
            return rerank(queries, self.gallery, proposed, topk)
        scores = np.full((len(queries), topk), -np.inf, dtype=np.float32)
        ids = np.full((len(queries), topk), -1, dtype=np.int64)
        for row, hits in enumerate(found):
            for column, (place, score) in enumerate(hits[:topk]):
                ids[row, column], scores[row, column] = place, score
        return scores, ids


if __name__ == "__main__":
    serve(MultivectorFastPlaid)
