"""Kills a writer at random moments, again and again, and checks what it left.

    python tests/kill_writers.py FOLDER [--kills 200] [--seed 0]

Writers are forked, so that starting one costs milliseconds; each adds, removes, updates, compacts
and indexes without a pause until SIGKILL comes. Afterwards the gallery must be at the state before
or after the operation that was under way, whole, and take the next writer at once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import faiss
import living_gallery
import torch

from divse.search.gallery import Gallery


def write_until_killed(path: Path, seed: int, pipe: int) -> None:
    """Be the writer; never returns."""
    announced = living_gallery.Writer(
        path, seed, lambda *state: os.write(pipe, living_gallery.line(*state))
    )
    while True:
        announced.step()


def last_announcements(pipe: int) -> dict[int, list]:
    """Everything that a dead writer announced, by generation."""
    text = b""
    while part := os.read(pipe, 1 << 20):
        text += part
    return dict(json.loads(line) for line in text.split(b"\n") if line.endswith(b"]]]"))


def kill_once(path: Path, seed: int, known: dict[int, list], after: float) -> int:
    """Start a writer, kill it `after` seconds, check; return how far the gallery has come."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receiver)
        try:
            write_until_killed(path, seed, sender)
        finally:
            os._exit(1)
    os.close(sender)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    if os.waitpid(child, 0)[1] != signal.SIGKILL:
        raise AssertionError(f"writer {seed} ended by itself")
    known.update(last_announcements(receiver))
    os.close(receiver)
    gallery = Gallery.open(path)
    generation = gallery.manifest.generation
    rows = [[row["id"], row["version"]] for row in gallery.rows.to_pylist()]
    assert rows == known[generation], f"generation {generation} is not what was announced"
    assert generation >= max(known) - 1, f"lost: {max(known) - 1} was committed, is {generation}"
    gallery.verify()
    living_gallery.check(gallery)
    return generation


def operation_seconds(path: Path) -> float:
    """How long an operation takes here: kills come within a few of them."""
    living_gallery.create(path)
    writer = living_gallery.Writer(path, 0, lambda *state: None)
    start = time.perf_counter()
    for _ in range(5):
        writer.step()
    return (time.perf_counter() - start) / 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    path = options.folder / "gallery"
    gallery = living_gallery.create(path)
    known = {gallery.manifest.generation: [[number, 0] for number in range(40)]}
    draw = random.Random(options.seed)
    seconds = operation_seconds(options.folder / "timed")
    generation = 0
    for kill in range(options.kills):
        after = draw.uniform(0, 4 * seconds)
        generation = kill_once(path, options.seed * 10_000 + kill, known, after)
    after = Gallery.open(path).compact()
    named = {entry.name for entry in after.manifest.segments} | {"manifest.json", "writer.lock"}
    left = {entry.name for entry in path.iterdir() if not entry.name.startswith("index-")}
    assert left == named, f"left behind: {sorted(left - named)}"
    print(f"{options.kills} kills, {generation} generations: nothing lost, nothing damaged")
    return 0


if __name__ == "__main__":
    sys.exit(main())
