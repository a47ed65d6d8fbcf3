"""The plans "exact" and "certified": scans of all sets that pass the filter.

On a CPU the C++ kernels read the files as they are. On a GPU the gallery is scanned in its memory,
or streams to it in blocks; where few sets pass a filter, only these are gathered and copied.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from divse.search.request import Found, Request
from divse.search.scan import Hits, exact_scan
from divse.search.stored_scan import serves, stored_scan
from divse.sets import EmbeddingSets
from divse.similarity import dispatch, triton
from divse.similarity.inputs import bitmap, read_parameters, read_sets
from divse.similarity.table import get_similarity

GATHERED = 8  # where one in so many sets passes, or fewer, these are gathered and no others read
GATHERED_BYTES = 1 << 27  # of embeddings at a time


def run_exact(request: Request) -> Found:
    """Score every set that passes the filter."""
    work, queries = request.work, request.on_device
    step = request.tell("scan", len(request.gallery))
    work.bytes_read += request.bytes_of(request.survivors)
    work.candidates += request.survivors * len(request.queries)
    with work.timed("scan"):
        if serves(queries, request.scoring):
            hits, _ = stored_scan(
                queries,
                request.gallery,
                request.topk,
                request.scoring,
                selection=request.selection,
                progress=step,
            )
            return Found.of(*hits, certified=True)
        few = request.selection is not None
        few = few and GATHERED * request.survivors <= len(request.gallery)
        if few and request.resident is None:
            return Found.of(*_gathered_scan(request, queries), certified=True)
        blocks = request.gallery.blocks()
        if request.resident is not None:
            blocks = iter([(0, request.resident.sets)])
        excluded = _excluded(request)
        hits = exact_scan(queries, blocks, request.topk, request.scoring, step, excluded)
        return Found.of(*hits, certified=True)


def _gathered_scan(request: Request, queries: EmbeddingSets) -> Hits:
    """Scan the sets of the selection alone."""
    assert request.selection is not None
    positions = request.selection.positions
    each = max(1, request.bytes_of(request.survivors) // request.survivors)
    size = max(1, GATHERED_BYTES // each)

    def blocks() -> Iterator[tuple[int, EmbeddingSets]]:
        for first in range(0, len(positions), size):
            yield first, request.gallery.sets(positions[first : first + size])

    step = request.tell("scan", len(positions))
    hits = exact_scan(queries, blocks(), request.topk, request.scoring, step)
    return Hits(hits.scores, torch.from_numpy(positions)[hits.positions.cpu()])


def _excluded(request: Request) -> torch.Tensor | None:
    """The mask (N,) of the sets that do not pass, on the device."""
    if request.selection is None:
        return None
    return torch.from_numpy(~request.selection.mask).to(request.device)


def run_certified(request: Request) -> Found:
    """Read the int8 codes, and score the sets that they cannot rule out."""
    work, queries = request.work, request.on_device
    work.bytes_read += request.by_codes(request.survivors)
    with work.timed("scan"):
        if request.resident is not None:
            scores, ids, scored = _on_device(request, queries)
        else:
            (scores, ids), scored = stored_scan(
                queries,
                request.gallery,
                request.topk,
                request.scoring,
                by_codes=True,
                selection=request.selection,
                progress=request.tell("scan", len(request.gallery)),
            )
    work.candidates += scored
    work.bytes_read += request.bytes_of(scored)
    return Found.of(scores, ids, certified=True)


def _on_device(request: Request, queries: EmbeddingSets) -> tuple[torch.Tensor, torch.Tensor, int]:
    """The same by the Triton kernels, in the device's memory."""
    assert request.resident is not None and request.resident.codes is not None
    scoring, excluded = request.scoring, _excluded(request)
    similarity = get_similarity(scoring.similarity)
    dispatch.calls["triton.certified"] += 1
    with torch.no_grad():
        scores, ids, survivors = triton.certified_search(
            read_sets(queries, None, "queries"),
            read_sets(request.resident.sets, None, "gallery"),
            request.resident.codes,
            request.topk,
            similarity,
            read_parameters(similarity, scoring.alpha, scoring.log_mean, scoring.parameters),
            None if excluded is None else bitmap(excluded),
        )
    return scores, ids, int(survivors.sum())
