"""The plan "prefilter": look deeper until the answer is proven or stays the same.

Each round looks up more elements of each query element, in more clusters, and scores all owners
exactly. A query is done when

    proven  no set that the round did not see can be among the best: all sets that pass the filter
            were candidates, or the k-th best score is above the bound of unseen sets (`bounds`;
            only an index that compares with all elements gives one);
    stable  two rounds in a row had the same answer, or the last round is over.

With settings that the caller names it is one round. Whatever the settings, a query for which too
few sets were proposed is asked again, deeper, so no answer is short. Where the next round would
look at so many elements that a scan costs less, the scan answers the queries that are left.
"""

from __future__ import annotations

import numpy as np

from divse.search.bounds import bounds_unseen, unseen_bound
from divse.search.proposal import Best, Effort, PrefilterIndex
from divse.search.request import Found, Request
from divse.search.rerank import rerank
from divse.search.scans import run_exact

SCANNED_FROM = 8  # a depth of one in so many elements: comparing with all of them costs less


def first_effort(
    index: PrefilterIndex, topk: int, depth: int | None, probe: int | None, passing: float
) -> Effort:
    """Return what the first round does; where settings are given it is the only one.

    `passing` is the share of the sets that pass the filter.
    """
    usual = index.first_effort(topk, passing)
    rounds = usual.rounds if depth is None and probe is None else 1
    return Effort(index.fit(depth or usual.depth, topk), probe or usual.probe, rounds)


def run_prefilter(
    request: Request, index: PrefilterIndex, depth: int | None, probe: int | None
) -> Found:
    """Return the best sets of each query that the index leads to, and which answers are proven."""
    shape = (len(request.queries), request.topk)
    found = Found(
        np.full(shape, -np.inf, np.float32), np.full(shape, -1), np.zeros(shape[0], dtype=bool)
    )
    waiting = np.arange(shape[0])
    passing = request.survivors / len(request.gallery)
    effort = first_effort(index, request.topk, depth, probe, passing)
    elements, work = request.gallery.manifest.elements, request.work
    work.rounds = 0
    while len(waiting) and (not work.rounds or effort.depth * SCANNED_FROM <= elements):
        waiting = _round(request.of(waiting), index, effort, found, waiting)
        work.depth = index.fit(effort.depth, request.topk)
        work.probe = min(effort.probe, index.lists)
        work.rounds += 1
        effort = effort.more()
    if len(waiting):
        for mine, theirs in zip(found, run_exact(request.of(waiting)), strict=True):
            mine[waiting] = theirs
    return found


def _round(
    request: Request, index: PrefilterIndex, effort: Effort, found: Found, rows: np.ndarray
) -> np.ndarray:
    """Answer the queries of `request`, which are `rows` of `found`; return those not done."""
    work = request.work
    with work.timed("prefilter"):
        best = index.best(request, effort)
    if best is None:
        best = _in_two_steps(request, index, effort)
    seen = int(best.seen.sum())
    work.candidates += seen
    work.bytes_read += request.bytes_of(seen) + best.bytes_read
    stable = (best.positions == found.positions[rows]).all(axis=1)
    found.scores[rows], found.positions[rows] = best.scores, best.positions
    found.certified[rows] = proven(request, index, effort.probe, best)
    short = (best.positions < 0).any(axis=1)
    done = found.certified[rows] | stable | (effort.rounds <= 1)
    return np.asarray(rows[short | ~done])


def _in_two_steps(request: Request, index: PrefilterIndex, effort: Effort) -> Best:
    """Propose, then score."""
    with request.work.timed("prefilter"):
        proposal = index.propose(request.queries, request.scoring, effort, request.selection)
    with request.work.timed("rerank"):
        scores, positions = (x.cpu().numpy() for x in rerank(request, proposal.candidates))
    seen = (proposal.candidates >= 0).sum(axis=1)
    return Best(scores, positions, seen, proposal.limits, proposal.bytes_read)


def proven(request: Request, index: PrefilterIndex, probe: int, best: Best) -> np.ndarray:
    """Return which queries (B,) have the best sets for certain."""
    everything = np.asarray(best.seen == request.survivors)
    exhaustive = bounds_unseen(request.scoring) and index.is_exhaustive(probe)
    if best.limits is None or not exhaustive:
        return everything
    lengths = request.queries.numpy().lengths
    bound = unseen_bound(
        best.limits,
        None if lengths is None else np.asarray(lengths),
        request.gallery.k,
        request.gallery.dim,
        request.scoring,
    )
    return np.asarray(everything | (best.scores[:, -1] > bound))
