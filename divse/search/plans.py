"""Which plan a search takes, and why: by size, filter, hardware, and what was measured."""

from __future__ import annotations

from dataclasses import dataclass

from divse.search.element_index import has_faiss
from divse.search.snapshot import Snapshot

PLANS = ("auto", "exact", "certified", "prefilter")
CERTIFIED_FROM = 4_000_000  # stored numbers to search: below, a plain scan takes a millisecond
EXACT_UP_TO = 200_000_000  # and up to here some ten, by codes
BRUTE_FORCE = 16_000_000  # numbers of the sets that pass a filter: below, no index is faster


@dataclass(frozen=True)
class Asked:
    """What decides between plans.

    `survivors` sets pass the filter (all without one). `why_not_certified` is why codes cannot
    serve, if they cannot; `indexed`: an element index is open or stored.
    """

    plan: str
    depth: int | None
    snapshot: Snapshot
    survivors: int
    device: str
    why_not_certified: str | None
    indexed: bool

    @property
    def numbers(self) -> int:
        """Stored numbers of the sets that pass."""
        manifest = self.snapshot.manifest
        return manifest.elements * manifest.dim * self.survivors // max(1, manifest.sets)


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


def check_plan(plan: str, depth: int | None) -> None:
    """Refuse plans that are none and settings that are not theirs."""
    if plan not in PLANS:
        raise ValueError(f"plan: got {plan!r}, expected one of {', '.join(PLANS)}")
    if plan in ("exact", "certified") and depth is not None:
        raise ValueError("depth is of plan='prefilter': leave it, or change the plan")
    if depth is not None and depth < 1:
        raise ValueError(f"depth: got {depth}, expected at least 1")


def choose(asked: Asked) -> Choice:
    """Return the plan to take; a named one is taken as it is."""
    if asked.plan != "auto" or asked.depth is not None:
        why = "as asked" if asked.plan != "auto" else "a depth is given"
        plan = asked.plan if asked.plan != "auto" else "prefilter"
        filtered = asked.survivors < len(asked.snapshot)
        brute = plan == "prefilter" and filtered and asked.numbers <= BRUTE_FORCE
        return Choice(plan, why, asked.depth, brute=brute)
    size = f"{asked.numbers:,} numbers"
    if asked.numbers > EXACT_UP_TO:
        if asked.indexed and has_faiss():
            return Choice("prefilter", f"{size} are many")
        missing = "no index is stored in the gallery" if has_faiss() else "faiss is not installed"
        return _scan(asked, f"{size} are many, but {missing}")
    few = "few" if asked.numbers <= CERTIFIED_FROM else "not many"
    return _scan(asked, f"{size} are {few}")


def _scan(asked: Asked, why: str) -> Choice:
    """A scan of all sets that pass: by codes where they serve and save time, else plainly."""
    if asked.numbers <= CERTIFIED_FROM or asked.device != "cpu":
        return Choice("exact", why)
    if asked.why_not_certified is not None:
        return Choice("exact", f"{why}; {asked.why_not_certified}")
    return Choice("certified", f"{why}, and codes are stored")
