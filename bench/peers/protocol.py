"""How a peer of bench_search.py is spoken to: JSON lines on stdin and stdout, arrays in .npy files.

A peer is a script of its own, run by the Python of its own virtual environment. It subclasses
`Peer` and ends with `serve(ThePeer)`; nothing here needs more than numpy. Requests:

    {"do": "build", "gallery": PATH, "folder": PATH}     -> {"seconds": s}
    {"do": "open", "gallery": PATH, "folder": PATH}      -> what the peer is: versions, ladders, ...
    {"do": "answer", "queries": PATH, "out": PATH, ...}  -> {"ms": [of each call], "memory": bytes}

The gallery is a .npy file of float32 unit vectors (N, K, D), queries one of (B, K, D). A failed
request is answered with {"error": reason}.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Setting = dict[str, Any]
PROBED_SHARES = (64, 32, 16, 8, 4, 2)  # one list of an inverted file in so many is looked into
DEPTHS = tuple(round(10 * 2 ** (step / 2)) for step in range(22))  # 10, 14, 20 ... 14,482


class Peer(ABC):
    """A search engine: builds once, then answers; what it does not say of itself is the default.

    similarity: what it orders by, "smooth_chamfer" or "maxsim".
    stored: the precision of the sets whose exact scores it returns; None: scores are estimates.
    exact: it claims the best of all sets, not most of them.
    reads_gallery: it reads the gallery's .npy at search time, which then counts as its own.
    """

    similarity = "smooth_chamfer"
    stored: str | None = "float32"
    exact = False
    reads_gallery = False

    def versions(self) -> dict[str, str]:
        """Of the packages it is made of."""
        return {}

    def build(self, gallery: Path, folder: Path) -> None:  # noqa: B027 -- some need none
        """Write into an empty folder what searching needs."""

    @abstractmethod
    def open(self, gallery: Path, folder: Path) -> None:
        """Get ready to search."""

    def ladders(self) -> list[list[Setting]]:
        """Settings to try: each list has more and more effort, so more and more recall."""
        return [[{}]]

    @abstractmethod
    def search(self, queries: Array, topk: int, **setting: Any) -> tuple[Array, Array]:
        """Scores (B, topk), best first, and positions (B, topk) int64, -1 = none."""


def versions_of(*packages: str) -> dict[str, str]:
    """Versions of installed packages."""
    from importlib.metadata import version

    return {name: version(name) for name in packages}


def resident() -> int:
    """Bytes of this process in memory at its peak, pages of mapped files included."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s*(\d+)", status)
    return 1024 * int(found[1]) if found else 0


class Server:
    """Answers requests for one peer."""

    def __init__(self, peer: Peer) -> None:
        self.peer, self.baseline = peer, resident()

    def build(self, gallery: str, folder: str) -> dict[str, Any]:
        """Build and say how long that took."""
        start = time.perf_counter()
        self.peer.build(Path(gallery), Path(folder))
        return {"seconds": time.perf_counter() - start}

    def open(self, gallery: str, folder: str) -> dict[str, Any]:
        """Open and introduce the peer."""
        start, peer = time.perf_counter(), self.peer
        peer.open(Path(gallery), Path(folder))
        return {
            "seconds": time.perf_counter() - start,
            "versions": peer.versions(),
            "similarity": peer.similarity,
            "stored": peer.stored,
            "exact": peer.exact,
            "reads_gallery": peer.reads_gallery,
            "ladders": peer.ladders(),
        }

    def answer(
        self,
        queries: str,
        out: str,
        topk: int,
        setting: Setting,
        batch: int,
        budget: float,
        clock: str,
        warm: int = 1,
    ) -> dict[str, Any]:
        """Ask full batches, at least one, for as long as the budget lasts; time every call.

        `clock` is a function of `time`.
        """
        now = getattr(time, clock)
        asked = np.load(queries)
        ms: list[float] = []
        found: list[tuple[Array, Array]] = []
        for _ in range(warm):
            self.peer.search(asked[:batch], topk, **setting)
        for first in range(0, len(asked) - batch + 1, batch):
            start = now()
            found.append(self.peer.search(asked[first : first + batch], topk, **setting))
            ms.append(1000 * (now() - start))
            if sum(ms) > 1000 * budget:
                break
        scores, ids = (np.concatenate(parts) for parts in zip(*found, strict=True))
        np.savez(out, scores=scores.astype(np.float32), ids=ids.astype(np.int64))
        return {"ms": ms, "memory": resident() - self.baseline}


def serve(make: Callable[..., Peer]) -> None:
    """Serve requests until stdin ends; the first argument is JSON with the peer's options."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes to stderr
    server = Server(make(**json.loads(sys.argv[1] if len(sys.argv) > 1 else "{}")))
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(server, request.pop("do"))(**request)
        except Exception as error:  # a peer may fail in any way, and the bench reports it
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
        print(json.dumps(answer), file=channel, flush=True)
