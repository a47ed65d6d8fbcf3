"""Measure which plan and settings answer fastest at a wanted recall, on this machine and gallery.

Queries are the caller's, or else drawn from the gallery: a set's elements are moved by noise of
`NOISE` times their length and normalised again, and the set itself is left out of its answers, as a
query is rarely in the gallery. Such queries lie where the gallery's sets do. Queries of another
kind, of another modality for one, may need more depth for the same recall: give a sample of your
own where you have one.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from time import perf_counter

import numpy as np
import torch

from divse.search.backend import Backend
from divse.search.element_index import has_faiss
from divse.search.gallery import Gallery
from divse.search.index_files import read_trained
from divse.search.scan import Scoring
from divse.search.searcher import Progress, Searcher
from divse.search.shard import lists
from divse.search.tuned_file import (
    Measured,
    Tuned,
    machine_name,
    scoring_name,
    write_tuned,
)
from divse.sets import Array, EmbeddingSets

QUERIES = 64  # drawn from the gallery
TIMED = 16  # of them, one after another
NOISE = 0.5
DEPTHS = (25, 50, 100, 200, 400, 800, 1600)
SHARES = (64, 32, 16, 8, 4, 2, 1)  # one in so many clusters is looked into


def tune(
    gallery: Gallery,
    *,
    recall: float = 0.99,
    topk: int = 10,
    queries: EmbeddingSets | Array | None = None,
    similarity: str = "smooth_chamfer",
    alpha: float = 16.0,
    log_mean: bool = False,
    impl: str = "auto",
    device: str | torch.device | None = None,
    store: bool = True,
    progress: Progress | None = None,
    **parameters: object,
) -> Tuned:
    """Find the cheapest plan and settings whose mean recall@`topk` against exact is `recall`.

    Scans always reach it. The prefilter is measured where the gallery stores an element index:
    adaptive, and with every useful pair of depth and clusters. The result is stored beside the
    gallery (`store=False` leaves it), and plan="auto" uses it from then on for up to `topk`
    results of the same similarity on this machine, until the gallery changes.

    Args:
        gallery: an open gallery, in the state that is on disk.
        recall: in (0, 1].
        topk: results of a query, 1 to N.
        queries: (B, K, D) a sample of what will be asked; None draws `QUERIES` sets (see above).
        similarity, alpha, log_mean, impl, parameters: as in `Searcher.search`.
        device: as of `Searcher`.
        progress: called as progress("tune", 1, number of measurements) after each.
    """
    if not 0 < recall <= 1:
        raise ValueError(f"recall: got {recall}, expected a share in (0, 1]")
    if not 1 <= topk <= len(gallery):
        raise ValueError(f"topk: got {topk}, expected 1 to {len(gallery)}, the gallery's size")
    scoring = Scoring(similarity, alpha, log_mean, impl, dict(parameters))
    searcher = Searcher(gallery, device=device)
    trial = _Trial(searcher, scoring, topk, queries)
    settings = list(_settings(gallery, searcher.device, scoring))
    measured: list[Measured] = []
    for plan, depth, probe in settings:
        if plan != "prefilter" or depth is None or not _hopeless(measured, recall, depth, probe):
            measured.append(trial.measure(plan, depth, probe))
        if progress is not None:
            progress("tune", 1, len(settings))
    best = min((m for m in measured if m.recall >= recall), key=lambda m: m.milliseconds)
    tuned = Tuned(
        best,
        float(recall),
        trial.topk,
        len(trial.queries),
        queries is None,
        gallery.manifest.checksum,
        machine_name(searcher.device),
        scoring_name(scoring),
        tuple(measured),
    )
    if store:
        write_tuned(gallery, tuned)
    return tuned


def held_out(gallery: Gallery, count: int, seed: int = 0) -> tuple[EmbeddingSets, np.ndarray]:
    """Draw sets of a gallery and move them: queries, and the positions (B,) they came from."""
    random = np.random.default_rng(seed)
    own = np.sort(random.choice(len(gallery), min(count, len(gallery)), replace=False))
    sets = gallery.sets(own)
    values = np.asarray(sets.values, dtype=np.float32)
    noise = random.standard_normal(values.shape, dtype=np.float32)
    noise *= NOISE / np.linalg.norm(noise, axis=-1, keepdims=True)
    return EmbeddingSets.of(values + noise, sets.lengths), own


class _Trial:
    """Queries with their exact answers, by which plans are measured."""

    def __init__(
        self,
        searcher: Searcher,
        scoring: Scoring,
        topk: int,
        queries: EmbeddingSets | Array | None,
    ) -> None:
        gallery = searcher.gallery
        self.searcher, self.scoring = searcher, scoring
        self.own: np.ndarray | None = None
        if queries is None:
            self.queries, self.own = held_out(gallery, QUERIES)
        elif isinstance(queries, EmbeddingSets):
            self.queries = queries
        else:
            self.queries = EmbeddingSets.of(queries)
        self.asked = min(topk + (self.own is not None), len(gallery))
        self.topk = max(1, self.asked - (self.own is not None))
        self.worst = self._scores("exact", None, None)[:, -1:] - 1e-6

    def measure(self, plan: str, depth: int | None, probe: int | None) -> Measured:
        """Search with one setting: all queries together, and some alone for the time."""
        recall = float((self._scores(plan, depth, probe) >= self.worst).mean())
        spent = []
        for row in range(min(TIMED, len(self.queries))):
            started = perf_counter()
            self._search(self.queries[row], plan, depth, probe)
            spent.append(1e3 * (perf_counter() - started))
        return Measured(plan, depth, probe, recall, statistics.median(spent))

    def _scores(self, plan: str, depth: int | None, probe: int | None) -> np.ndarray:
        """Scores (B, topk) of what is found, but for the sets that queries were drawn from."""
        scores, positions = self._search(self.queries, plan, depth, probe)
        if self.own is None:
            return scores
        rest = np.where(positions == self.own[:, None], -np.inf, scores)
        return -np.sort(-rest, axis=1)[:, : self.topk]

    def _search(
        self, queries: EmbeddingSets, plan: str, depth: int | None, probe: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        found = self.searcher.search_positions(
            queries, self.asked, plan, depth, self.scoring, probe=probe
        )
        return np.asarray(found.scores), np.asarray(found.ids)


def _settings(
    gallery: Gallery, device: torch.device, scoring: Scoring
) -> Iterator[tuple[str, int | None, int | None]]:
    """The plans to measure, with their settings from the cheapest to the dearest."""
    yield "exact", None, None
    if Backend(gallery, device, None).why_not_certified(scoring) is None:
        yield "certified", None, None
    stored = gallery.manifest.index
    if stored is None or not has_faiss():
        return
    yield "prefilter", None, None
    clusters = lists(read_trained(gallery.path, stored))
    for probe in sorted({max(1, clusters // share) for share in SHARES}):
        for depth in DEPTHS:
            yield "prefilter", depth, probe


def _hopeless(measured: list[Measured], recall: float, depth: int, probe: int | None) -> bool:
    """Whether a setting cannot be the best: something is known to be both good and cheaper.

    Deeper takes longer, and so does wider: a setting that is deeper and wider than a good one is
    passed over, and one wider than a setting that takes longer than the best.
    """
    good = [m for m in measured if m.recall >= recall]
    slow = 1.5 * min(m.milliseconds for m in good)
    for other in measured:
        if other.depth is None or other.probe is None or probe is None:
            continue
        dearer = other.depth <= depth and other.probe <= probe
        if dearer and (other.recall >= recall or other.milliseconds > slow):
            return True
    return False
