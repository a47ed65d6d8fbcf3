"""Many readers beside one writer that adds, removes, updates, compacts and indexes.

    python tests/soak_gallery.py FOLDER [--seconds 600] [--readers 3]

Every answer of every reader must be the exact answer on the committed state that it opened,
computed here from what the writer announced, without the gallery. Readers also keep a snapshot
while the writer goes on, and ask it again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from pathlib import Path

import living_gallery
import numpy as np
import torch

from divse.search.gallery import Gallery
from divse.search.searcher import Searcher
from divse.similarity import reference


def write(path: Path, log: Path, until: float, seed: int) -> None:
    """Be the writer until a moment; every state is in the log before it is committed."""
    torch.set_num_threads(1)
    with log.open("ab", buffering=0) as file:
        writer = living_gallery.Writer(
            path, seed, lambda *state: file.write(living_gallery.line(*state))
        )
        while time.time() < until:
            writer.step()


def announced(log: Path) -> dict[int, list]:
    """What the gallery holds in each generation."""
    lines = log.read_bytes().split(b"\n")
    return dict(json.loads(line) for line in lines if line.endswith(b"]]]"))


def exact(rows: list, query: np.ndarray, topk: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and ids of the best sets by the specification, in float64."""
    ids, versions = zip(*rows, strict=True)
    values = living_gallery.sets_of(ids, versions).values.astype(np.float16).astype(np.float64)
    cosines = torch.einsum(
        "kd,nld->nkl", torch.from_numpy(query.astype(np.float64)), torch.from_numpy(values)
    )
    scores = reference.smooth_chamfer(cosines, alpha=16.0).numpy()
    order = np.argsort(-scores, kind="stable")[:topk]
    return scores[order], np.array(ids)[order]


def ask(gallery: Gallery, rows: list, query: np.ndarray) -> None:
    """Assert that a search in a snapshot is the exact answer."""
    topk = min(5, len(rows))
    found = Searcher(gallery, device="cpu").search(query[None], topk, "exact")
    scores, ids = exact(rows, query, topk)
    np.testing.assert_allclose(found.scores[0], scores, atol=1e-5)
    near = np.abs(np.diff(scores, prepend=9.0, append=-9.0)) < 1e-5  # near ties may change places
    sure = ~(near[:-1] | near[1:])
    np.testing.assert_array_equal(found.ids[0][sure[:topk]], ids[sure[:topk]])


def read(path: Path, log: Path, until: float, seed: int, counts) -> None:
    """Be a reader until a moment."""
    torch.set_num_threads(1)
    draw = np.random.default_rng(seed)
    kept = None
    while time.time() < until:
        gallery = Gallery.open(path)
        rows = announced(log)[gallery.manifest.generation]
        query = draw.standard_normal((living_gallery.K, living_gallery.DIM), dtype=np.float32)
        query /= np.linalg.norm(query, axis=-1, keepdims=True)
        ask(gallery, rows, query)
        if kept is not None:
            ask(*kept, query)  # its files may be gone from the folder by now
        if kept is None or draw.random() < 0.1:
            kept = (gallery, rows)
        with counts.get_lock():
            counts[0] += 1
            counts[1] = max(counts[1], gallery.manifest.generation)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--readers", type=int, default=3)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    path, log = options.folder / "gallery", options.folder / "announced.jsonl"
    gallery = living_gallery.create(path)
    log.write_bytes(living_gallery.line(gallery.manifest.generation, [(i, 0) for i in range(40)]))
    until = time.time() + options.seconds
    spawn = multiprocessing.get_context("spawn")
    counts = spawn.Array("q", 2)
    tasks = [spawn.Process(target=write, args=(path, log, until, 0))]
    for seed in range(options.readers):
        tasks.append(spawn.Process(target=read, args=(path, log, until, seed + 1, counts)))
    for task in tasks:
        task.start()
    for task in tasks:
        task.join()
    if any(task.exitcode for task in tasks):
        print("a process failed: its traceback is above")
        return 1
    answers, generations = counts
    if not answers or not generations:
        print("nothing was asked: give more --seconds")
        return 1
    print(f"{answers} answers over {generations} generations: every answer was exact")
    return 0


if __name__ == "__main__":
    sys.exit(main())
