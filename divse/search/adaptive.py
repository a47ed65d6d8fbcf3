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
from divse.search.proposal import Effort, PrefilterIndex, Proposal
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
        proposal = index.propose(request.queries, request.scoring, effort, request.selection)
    with work.timed("rerank"):
        scores, positions = (x.cpu().numpy() for x in rerank(request, proposal.candidates))
    seen = (proposal.candidates >= 0).sum(axis=1)
    work.candidates += int(seen.sum())
    work.bytes_read += request.bytes_of(int(seen.sum())) + proposal.bytes_read
    stable = (positions == found.positions[rows]).all(axis=1)
    found.scores[rows], found.positions[rows] = scores, positions
    found.certified[rows] = proven(request, index, effort.probe, proposal, scores[:, -1], seen)
    short = (positions < 0).any(axis=1)
    done = found.certified[rows] | stable | (effort.rounds <= 1)
    return np.asarray(rows[short | ~done])


def proven(
    request: Request,
    index: PrefilterIndex,
    probe: int,
    proposal: Proposal,
    worst: np.ndarray,
    seen: np.ndarray,
) -> np.ndarray:
    """Return which queries (B,) have the best sets for certain.

    `worst` (B,) are the least of the best scores, `seen` (B,) the numbers of candidates.
    """
    everything = np.asarray(seen == request.survivors)
    if not (bounds_unseen(request.scoring) and index.is_exhaustive(probe)):
        return everything
    lengths = request.queries.numpy().lengths
    bound = unseen_bound(
        proposal.limits,
        None if lengths is None else np.asarray(lengths),
        request.gallery.k,
        request.gallery.dim,
        request.scoring,
    )
    return np.asarray(everything | (worst > bound))
