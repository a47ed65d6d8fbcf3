"""Measure which plan and settings answer fastest at a wanted recall, on this machine and gallery.

Queries are the caller's, or else drawn from the gallery, in two kinds (`trial`): sets that are
moved by noise, and sets that are mixed of the elements of several. A setting must reach the recall
on each kind, and not by the luck of the draw: it is the lower bound of the mean (95 % confidence)
that counts, as settings are compared where the mean is hardly above the goal. The confidence is in
each setting by itself, not in the best of all that were tried.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from divse.search.backend import Backend
from divse.search.gallery import Gallery
from divse.search.index_files import read_trained
from divse.search.index_spec import is_sketch, is_usable, sketch_spec
from divse.search.plans import topk_of
from divse.search.scan import Scoring
from divse.search.searcher import Progress, Searcher
from divse.search.shard import lists
from divse.search.trial import Sample, Trial, drawn
from divse.search.tuned_file import (
    Measured,
    Tuned,
    machine_name,
    scoring_name,
    write_tuned,
)
from divse.sets import Array, EmbeddingSets

QUERIES = 256  # of each kind: with few clusters fewer than 150 could not show 0.99
DEPTHS = (25, 50, 100, 200, 400, 800, 1600)  # elements for each query element
SKETCH_DEPTHS = tuple(round(64 * 2 ** (step / 4)) for step in range(41))  # sets: 64, 76 ... 65,536
SHARES = (64, 32, 16, 8, 4, 2, 1)  # one in so many clusters is looked into


def tune(
    gallery: Gallery,
    *,
    recall: float = 0.99,
    topk: int | None = None,
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
    """Find the cheapest plan and settings whose recall@`topk` against exact is `recall`.

    The mean of each kind of queries must reach it with 95 % confidence: fewer ask for more depth,
    and a recall near 1 for more queries, or else for a scan.

    Scans always reach it. The prefilter is measured where the gallery stores an index, as it goes
    unasked and with other settings. The result is stored beside the gallery (`store=False` leaves
    it), and plan="auto" uses it from then on for up to `topk` results of the same similarity on
    this machine, until the gallery changes.

    Args:
        gallery: an open gallery, in the state that is on disk.
        recall: in (0, 1].
        topk: results of a query, 1 to N; None: 10, or all of fewer.
        queries: (B, K, D) a sample of what will be asked; None draws `QUERIES` of each kind.
        similarity, alpha, log_mean, impl, device, parameters: as of `Searcher` and its `search`.
        progress: called as progress("tune", 1, number of measurements) after each.
    """
    if not 0 < recall <= 1:
        raise ValueError(f"recall: got {recall}, expected a share in (0, 1]")
    topk = topk_of(topk, len(gallery))
    if not 1 <= topk <= len(gallery):
        raise ValueError(f"topk: got {topk}, expected 1 to {len(gallery)}, the gallery's size")
    scoring = Scoring(similarity, alpha, log_mean, impl, dict(parameters))
    searcher = Searcher(gallery, device=device)
    trial = Trial(searcher, _samples(gallery, queries), scoring, topk)
    measuring = _Measuring(trial, recall, progress)
    measuring.run()
    tuned = Tuned(
        measuring.best,
        float(recall),
        trial.topk,
        trial.queries,
        trial.sampled,
        gallery.manifest.checksum,
        machine_name(searcher.device),
        scoring_name(scoring),
        tuple(measuring.found),
    )
    if store:
        write_tuned(gallery, tuned)
    return tuned


class _Measuring:
    """The settings that were measured in a trial, and what its caller is told of the progress."""

    def __init__(self, trial: Trial, recall: float, progress: Progress | None) -> None:
        gallery, device = trial.searcher.gallery, trial.searcher.device
        self._settings = list(_settings(gallery, device, trial.scoring))
        self._depths, self._probes = _sketch_settings(gallery)
        self._steps = len(self._depths).bit_length()
        self._trial, self._recall, self._progress = trial, recall, progress
        self.found: list[Measured] = []

    @property
    def best(self) -> Measured:
        """The fastest setting that reaches the recall: scans do."""
        return min((m for m in self.found if self._enough(m)), key=lambda m: m.milliseconds)

    def run(self) -> None:
        """Measure each setting that may be the best."""
        for plan, depth, probe in self._settings:
            if depth is None or not self._hopeless(depth, probe):
                self._measure(plan, depth, probe)
            self._tell(1)
        enough = self._bisect(self._depths, None)
        for probe in self._probes:
            self._tell(1)
            if enough and self._enough(self._measure("prefilter", enough, probe)):
                self._bisect([depth for depth in self._depths if depth < enough], probe)
            else:
                self._tell(self._steps)

    def _bisect(self, depths: list[int], probe: int | None) -> int | None:
        """Look for the first depth that is enough: deeper finds no less and takes longer.

        With fewer cells it is about the same or less: fewer sets compete.
        """
        steps, found = self._steps, None
        while depths:
            middle = len(depths) // 2
            enough = self._enough(self._measure("prefilter", depths[middle], probe))
            found = depths[middle] if enough else found
            depths = depths[:middle] if enough else depths[middle + 1 :]
            steps -= 1
            self._tell(1)
        self._tell(steps)
        return found

    def _measure(self, plan: str, depth: int | None, probe: int | None) -> Measured:
        recall = bound = 1.0  # of scans, which find what is true by definition, or proven to be
        if plan == "prefilter":
            outcome = self._trial.search(plan, depth, probe)
            recall, bound = outcome.recall, outcome.lower_bound
        spent = self._trial.milliseconds(plan, depth, probe)
        self.found.append(Measured(plan, depth, probe, recall, bound, spent))
        return self.found[-1]

    def _enough(self, measured: Measured) -> bool:
        return measured.lower_bound >= self._recall

    def _hopeless(self, depth: int, probe: int | None) -> bool:
        """Whether a setting cannot be the best: something is known to be both good and cheaper.

        Deeper takes longer, and so does wider: a setting that is deeper and wider than a good one
        is passed over, and one wider than a setting that takes longer than the best.
        """
        slow = 1.5 * self.best.milliseconds
        for other in self.found:
            if other.depth is None:
                continue
            dearer = other.depth <= depth and (other.probe or 1) <= (probe or 1)
            if dearer and (self._enough(other) or other.milliseconds > slow):
                return True
        return False

    def _tell(self, steps: int) -> None:
        if self._progress is not None and steps:
            of_sketches = self._steps + len(self._probes) * (1 + self._steps)
            total = len(self._settings) + of_sketches
            self._progress("tune", steps, total)


def _samples(gallery: Gallery, queries: EmbeddingSets | Array | None) -> list[Sample]:
    if queries is None:
        return drawn(gallery, QUERIES)
    given = queries if isinstance(queries, EmbeddingSets) else EmbeddingSets.of(queries)
    return [Sample("given", given)]


def _settings(
    gallery: Gallery, device: torch.device, scoring: Scoring
) -> Iterator[tuple[str, int | None, int | None]]:
    """The plans to measure, with their settings from the cheapest to the dearest."""
    yield "exact", None, None
    if Backend(gallery, device, None).why_not_certified(scoring) is None:
        yield "certified", None, None
    stored = gallery.manifest.index
    if stored is None or not is_usable(stored.spec):
        return
    yield "prefilter", None, None
    if is_sketch(stored.spec):
        return  # `_sketch_settings`
    for probe in _probes(lists(read_trained(gallery.path, stored, gallery.dim))):
        for depth in DEPTHS:
            yield "prefilter", depth, probe


def _probes(clusters: int) -> list[int]:
    """How many clusters to look into, ascending."""
    return sorted({max(1, clusters // share) for share in SHARES})


def _sketch_settings(gallery: Gallery) -> tuple[list[int], list[int]]:
    """Depths, and numbers of cells but all, that are of use with sketches, ascending."""
    stored = gallery.manifest.index
    if stored is None or not is_sketch(stored.spec):
        return [], []
    depths = [depth for depth in SKETCH_DEPTHS if depth < len(gallery)]
    cells = sketch_spec(stored.spec).cells
    return depths, _probes(cells)[:-1] if cells else []
