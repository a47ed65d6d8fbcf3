"""Top-10 search of a gallery of sets: plain numpy and torch, the exact scan, the prefilter.

    numpy       all cosines, exp, sums, logs, argpartition: what one writes in an afternoon
    torch       the same in torch (logsumexp, topk)
    native      divse.search(impl="native"): fused scan and top-k, fp32 gallery in memory (CPU)
    triton      divse.search(impl="triton") (GPU)
    exact       Searcher, plan="exact": fp16 gallery on disk, memory-mapped
    prefilter   Searcher, plan="prefilter", depth=200: FAISS over elements, exact scores after

Sets are clustered (each draws its elements around centres that it shares with other sets), queries
are fresh draws around the centres of some gallery sets. Columns: served by (what the call counter
saw), ms a query (median), x numpy, recall@10 against float64 on the fp32 sets, error of the
returned scores against float64 scores of the same ids (of the stored fp16 values where the gallery
holds those).

    python bench/bench_search.py [--sets 10000] [--queries 16] [--k 4] [--dim 256] [--json]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from harness import Verdict, gate, ratio, time_interleaved
from report import Report, parser

import divse
from divse.search.gallery import Gallery
from divse.search.searcher import Searcher
from divse.sets import EmbeddingSets
from divse.similarity import calls

ALPHA, TOPK, DEPTH = 16.0, 10, 200
Array = np.ndarray[Any, Any]
Found = tuple[Array, Array]  # scores (B, topk), ids (B, topk)


def clustered(n: int, queries: int, k: int, dim: int, seed: int = 0) -> tuple[Array, Array]:
    """Gallery (n, k, dim) and queries (queries, k, dim), fp32 unit vectors around shared centres.

    Two sets of one kind point to the same centres; noise is as strong as the centres themselves,
    so that neighbours compete (mean best cosine of a query and its source about 0.5).
    """
    rng = np.random.default_rng(seed)
    centres = unit(rng.standard_normal((max(8, n // 25), dim), dtype=np.float32))
    kinds = rng.integers(0, len(centres), (n, k))
    asked = rng.choice(n, queries, replace=queries > n)

    def draw(which: Array) -> Array:
        noise = unit(rng.standard_normal((*which.shape, dim), dtype=np.float32))
        return unit(centres[which] + noise)

    return draw(kinds), draw(kinds[asked])


def unit(x: Array) -> Array:
    """Unit vectors along the last axis."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def numpy_scores(queries: Array, gallery: Array) -> Array:
    """Smooth-Chamfer (B, N) in plain numpy, in the inputs' precision."""
    (b, k, d), (n, size, _) = queries.shape, gallery.shape
    products = np.exp(ALPHA * (queries.reshape(-1, d) @ gallery.reshape(-1, d).T))
    products = products.reshape(b, k, n, size)
    rows, columns = np.log(products.sum(3)).mean(1), np.log(products.sum(1)).mean(2)
    return (rows + columns) / (2 * ALPHA)


def numpy_search(queries: Array, gallery: Array) -> Found:
    """Top 10 by a full score matrix."""
    scores = numpy_scores(queries, gallery)
    some = np.argpartition(-scores, TOPK - 1, axis=1)[:, :TOPK]
    order = np.argsort(-np.take_along_axis(scores, some, 1), axis=1, kind="stable")
    ids = np.take_along_axis(some, order, 1)
    return np.take_along_axis(scores, ids, 1), ids


def torch_search(queries: torch.Tensor, gallery: torch.Tensor) -> Any:
    """The same in torch."""
    scores = divse.score(queries, gallery, alpha=ALPHA, unit_norm=False, impl="reference")
    return torch.topk(scores, TOPK, dim=1)


@dataclass(frozen=True)
class Variant:
    """A search to time, and the gallery values that it really scores."""

    call: Callable[[], Any]
    stored: Array


def variants(
    queries: Array, gallery: Array, folder: str, device: torch.device
) -> dict[str, Variant]:
    """All searches that can run here."""
    q, g = (torch.from_numpy(x).to(device) for x in (queries, gallery))
    found = {
        "numpy": Variant(partial(numpy_search, queries, gallery), gallery),
        "torch": Variant(partial(torch_search, q, g), gallery),
    }
    impl = "triton" if device.type == "cuda" else "native"
    fused = partial(divse.search, q, g, TOPK, alpha=ALPHA, unit_norm=False, impl=impl)
    found[impl] = Variant(fused, gallery)
    searcher = Searcher(Gallery.create(folder, EmbeddingSets(gallery)), device=device)
    sets = EmbeddingSets(queries)
    stored = gallery.astype(np.float16).astype(np.float32)
    for plan, depth in (("exact", None), ("prefilter", DEPTH)):
        call = partial(searcher.search, sets, TOPK, plan, depth, alpha=ALPHA)
        found[plan] = Variant(call, stored)
    return found


def judge(found: Found, queries: Array, stored: Array) -> Verdict:
    """Gate: returned scores against float64 scores of the same ids; order must be descending."""
    scores, ids = (torch.from_numpy(np.array(x)) for x in found)
    candidates = torch.from_numpy(stored)[ids]  # (B, topk, K, D)
    exact, plain = (
        torch.stack(
            [
                divse.score(q[None], c, alpha=ALPHA, unit_norm=False, impl="reference")[0]
                for q, c in zip(
                    torch.from_numpy(queries).to(dtype), candidates.to(dtype), strict=True
                )
            ]
        )
        for dtype in (torch.float64, torch.float32)
    )
    if bool((scores.diff(dim=1) > 0).any()):
        return Verdict(float("nan"), 0.0)
    return gate(scores, exact, plain)


def recall(ids: Array, truth: Array) -> float:
    """Mean share of the true top 10 that was found."""
    return float(
        np.mean([len(np.intersect1d(a, b)) / TOPK for a, b in zip(ids, truth, strict=True)])
    )


def run(report: Report, args: argparse.Namespace, batch: int) -> None:
    """All variants on one batch of queries."""
    gallery, queries = clustered(args.sets, batch, args.k, args.dim)
    truth = numpy_search(queries.astype(np.float64), gallery.astype(np.float64))[1]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        searches, skipped = {}, {}
        for name, variant in variants(queries, gallery, folder, report.device).items():
            calls.clear()
            try:
                found = tuple(_host(x) for x in variant.call()[:2])
            except (ValueError, ImportError) as error:
                skipped[name] = str(error)
                continue
            served = ", ".join(sorted(calls))
            verdict = judge(found, queries, variant.stored)
            searches[name] = (variant, verdict, found[1], served)
        green = {name: v.call for name, (v, verdict, *_) in searches.items() if verdict.green}
        times = time_interleaved(green, report.device, seconds=args.seconds)
    shape = f"{batch} x {args.sets:,} K={args.k} D={args.dim}"
    for name, (_, verdict, ids, served) in searches.items():
        speed = {}
        if name in times:
            speed["ms a query"] = statistics.median(times[name]) / batch
            speed["x numpy"] = ratio(times, "numpy", name) if "numpy" in times else None
        row = {"shape": shape, "variant": name, "served by": served} | speed
        report.add(verdict, **row, **{"recall@10": recall(ids, truth)})
    for name, why in skipped.items():
        print(f"{shape}, {name} skipped: {why}", file=sys.stderr)


def _host(x: Any) -> Array:
    return x.cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--sets", type=int, default=10_000)
    arguments.add_argument("--queries", type=int, default=16, help="size of the larger batch")
    arguments.add_argument("--k", type=int, default=4)
    arguments.add_argument("--dim", type=int, default=256)
    args = arguments.parse_args()
    report = Report("bench_search", args)
    for batch in dict.fromkeys((1, args.queries)):
        run(report, args, batch)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
