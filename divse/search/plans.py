"""Which plan a search takes, and why: by size, filter, hardware, and what was measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from divse.search.index_spec import automatic_spec, has_clusters, is_usable
from divse.search.scan import Scoring
from divse.search.snapshot import Snapshot

PLANS = ("auto", "exact", "certified", "prefilter")
CERTIFIED_FROM = 4_000_000  # stored numbers: a plain scan of fewer costs little beside the call
EXACT_UP_TO = 200_000_000  # a scan by codes of fewer costs about what a prefilter does
TOPK = 10  # results where no number is asked for
BRUTE_FORCE = 16_000_000  # of the sets that pass a filter: scanning fewer beats any index
UNFILTERED = 2  # measurements hold where a filter leaves one in so many sets, or more


@dataclass(frozen=True)
class Asked:
    """What a caller asks of a search, beside the queries and filters."""

    plan: str
    depth: int | None
    probe: int | None
    topk: int
    scoring: Scoring


@dataclass(frozen=True)
class Setting:
    """A plan with its settings, which `tune` found to be the cheapest."""

    plan: str
    depth: int | None
    probe: int | None
    why: str


@dataclass(frozen=True)
class Facts:
    """What a choice depends on beside what was asked.

    `survivors` sets pass the filter (all without one). `why_not_certified` is why codes cannot
    serve, if they cannot; `index` is the one that is open or stored, None without; `tuned` is a
    stored measurement, `note` why there is none that could be used.
    """

    snapshot: Snapshot
    survivors: int
    device: str
    why_not_certified: str | None
    index: str | None
    tuned: Setting | None
    note: str | None

    @property
    def numbers(self) -> int:
        """Stored numbers of the sets that pass."""
        manifest = self.snapshot.manifest
        return manifest.elements * manifest.dim * self.survivors // max(1, manifest.sets)

    @property
    def index_serves(self) -> bool:
        """Whether there is an index that can be searched here."""
        return self.index is not None and is_usable(self.index)

    @property
    def searched(self) -> str:
        """The index that the prefilter searches: the one there is, or would be built."""
        manifest = self.snapshot.manifest
        return self.index or automatic_spec(manifest.elements, manifest.sets)


@dataclass(frozen=True)
class Choice:
    """A plan, the reason, and the prefilter's settings where they are given.

    `brute`: the prefilter's index is passed over, as few sets pass the filter.
    """

    plan: str
    why: str
    depth: int | None = None
    probe: int | None = None
    brute: bool = False
    note: str | None = None


def is_large(gallery: Snapshot) -> bool:
    """Whether plan "auto" would rather look into an index than scan the gallery."""
    return gallery.manifest.elements * gallery.dim > EXACT_UP_TO


def topk_of(topk: int | None, sets: int) -> int:
    """Return how many results are meant: by None the usual ones, or all of fewer `sets`."""
    return min(TOPK, sets) if topk is None else topk


def check_asked(asked: Asked) -> None:
    """Refuse plans that are none and settings that are not theirs."""
    if asked.plan not in PLANS:
        raise ValueError(f"plan: got {asked.plan!r}, expected one of {', '.join(PLANS)}")
    for name, value in (("depth", asked.depth), ("probe", asked.probe)):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise TypeError(f"{name}: got {type(value).__name__}, expected an int")
        if asked.plan in ("exact", "certified"):
            raise ValueError(f"{name} is of plan='prefilter': leave it, or change the plan")
        if value < 1:
            raise ValueError(f"{name}: got {value}, expected at least 1")


def choose(asked: Asked, facts: Facts) -> Choice:
    """Return the plan to take; a named one is taken as it is, or refused where it cannot serve."""
    if asked.plan == "certified" and facts.why_not_certified is not None:
        raise ValueError(f"plan='certified' cannot serve this search: {facts.why_not_certified}")
    if asked.probe is not None and not has_clusters(facts.searched):
        raise ValueError(
            f"probe: got {asked.probe}, but the gallery's index is {facts.searched}, which has no "
            "clusters: leave it and give depth, or build an index with some (Cells,Sketch)"
        )
    given = asked.depth is not None or asked.probe is not None
    if asked.plan != "auto" or given:
        plan = "prefilter" if asked.plan == "auto" else asked.plan
        why = "its settings are given" if asked.plan == "auto" else "as asked"
        brute = plan == "prefilter" and _few(facts)
        if brute:
            why += f"; {facts.survivors} sets pass the filter: they are scanned"
        return Choice(plan, why, asked.depth, asked.probe, brute)
    tuned = facts.tuned
    if tuned is None:
        return _by_size(facts, facts.note)
    if (reason := _why_not_tuned(tuned, facts)) is not None:
        return _by_size(facts, reason)
    return Choice(tuned.plan, tuned.why, tuned.depth, tuned.probe)


def _why_not_tuned(tuned: Setting, facts: Facts) -> str | None:
    """Why a measured setting cannot be taken here, or None."""
    if facts.survivors * UNFILTERED < len(facts.snapshot):
        return "measured without a filter, which leaves few sets here"
    if tuned.plan == "certified" and facts.why_not_certified is not None:
        return f"the measured plan cannot run: {facts.why_not_certified}"
    if tuned.plan == "prefilter" and not facts.index_serves:
        return "the measured plan cannot run without faiss and an index"
    return None


def _few(facts: Facts) -> bool:
    """Whether a filter leaves so few sets that scanning them beats any index."""
    return facts.survivors < len(facts.snapshot) and facts.numbers <= BRUTE_FORCE


def _by_size(facts: Facts, note: str | None) -> Choice:
    size = f"{facts.numbers:,} numbers"
    if facts.numbers <= EXACT_UP_TO:
        few = "few" if facts.numbers <= CERTIFIED_FROM else "not many"
        return _scan(facts, f"{size} are {few}", note)
    if facts.index_serves:
        return Choice("prefilter", f"{size} are many", note=note)
    missing = "faiss is not installed" if facts.index else "no index is stored in the gallery"
    return _scan(facts, f"{size} are many, but {missing}", note)


def _scan(facts: Facts, why: str, note: str | None) -> Choice:
    """A scan of all sets that pass: by codes where they serve and save time, else plainly."""
    if facts.numbers <= CERTIFIED_FROM or facts.device != "cpu":
        return Choice("exact", why, note=note)
    if facts.why_not_certified is not None:
        return Choice("exact", f"{why}; {facts.why_not_certified}", note=note)
    return Choice("certified", f"{why}, and codes are stored", note=note)
