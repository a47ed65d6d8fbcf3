"""What `tune` measured, stored beside the gallery in tuned.json, and when it may be used.

A measurement belongs to one state of the gallery (the manifest's checksum), one machine, one
similarity with its parameters, and up to as many results as it was measured for. Anything else is
ignored, and `explain` says why. The file is no part of the gallery: readers do not need it, the
manifest does not name it, and whoever removes it loses nothing but the measurement.
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from divse.search.durable import replace_file
from divse.search.lock import writer_lock
from divse.search.manifest import TUNED, GalleryError, Manifest
from divse.search.plans import PLANS, Asked, Setting
from divse.search.scan import Scoring
from divse.search.snapshot import Snapshot

FORMAT, VERSION = "divse-tuned", 2


@dataclass(frozen=True)
class Measured:
    """One plan with its settings: mean recall against exact, and median milliseconds a query.

    `lower_bound` is what the recall of all such queries reaches with 95 % confidence.
    """

    plan: str
    depth: int | None
    probe: int | None
    recall: float
    lower_bound: float
    milliseconds: float


@dataclass(frozen=True)
class Tuned:
    """The cheapest setting that reached `recall` for `topk` results, and all that was measured.

    `queries` were measured, drawn from the gallery itself if `sampled`. `state` is the manifest's
    checksum; `scoring` describes the similarity.
    """

    best: Measured
    recall: float
    topk: int
    queries: int
    sampled: bool
    state: str
    machine: str
    scoring: str
    measured: tuple[Measured, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """Return one line."""
        best = self.best
        given = {"depth": best.depth, "probe": best.probe}
        settings = "".join(f" {name}={n}" for name, n in given.items() if n is not None)
        source = "sampled from the gallery" if self.sampled else "given"
        return (
            f"{best.plan}{settings}: recall@{self.topk} {best.recall:.4f} (95 % confidence: "
            f"{best.lower_bound:.4f} or more) at {best.milliseconds:.3g} ms a query "
            f"({self.queries} queries, {source})"
        )


def machine_name(device: torch.device) -> str:
    """Describe what a time depends on: processors, threads, instruction set, GPU."""
    try:
        import divse_native

        isa = divse_native.instruction_sets()[0]
    except ImportError:
        isa = "no divse_native"
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    threads = f"{os.cpu_count()} CPUs, {torch.get_num_threads()} threads"
    return f"{platform.machine()}, {threads}, {isa}, {gpu}"


def scoring_name(scoring: Scoring) -> str:
    """Describe a similarity and its parameters; `impl` is part of it."""
    given = {"log_mean": scoring.log_mean, **scoring.parameters}
    if scoring.similarity == "smooth_chamfer":
        given["alpha"] = float(scoring.alpha)
    listed = ", ".join(f"{name}={value}" for name, value in sorted(given.items()))
    return f"{scoring.similarity}({listed}) by {scoring.impl}"


class TunedFile:
    """The stored measurements of a gallery, as one machine sees them."""

    def __init__(self, snapshot: Snapshot, device: torch.device) -> None:
        self._snapshot, self._device = snapshot, device
        self._path = snapshot.path / TUNED
        self._stamp: tuple[int, int] | None = None
        self._entries: list[Tuned] | str = []

    def setting(self, asked: Asked) -> tuple[Setting | None, str | None]:
        """Return what was found to be cheapest, or None and why no measurement serves, if any."""
        if asked.plan != "auto":
            return None, None
        entries = self._read()
        if isinstance(entries, str):
            return None, entries
        reason = None
        for entry in entries:
            reason = self._why_not(entry, asked)
            if reason is None:
                best = entry.best
                why = f"measured: recall {best.recall:.3f} at {best.milliseconds:.3g} ms a query"
                return Setting(best.plan, best.depth, best.probe, why), None
        return None, reason and f"{TUNED} is not used: {reason}"

    def _why_not(self, entry: Tuned, asked: Asked) -> str | None:
        if entry.state != self._snapshot.manifest.checksum:
            return "it is of another state of the gallery; tune again"
        machine = machine_name(self._device)
        if entry.machine != machine:
            return f"it was measured on another machine ({entry.machine}, this is {machine})"
        if entry.scoring != scoring_name(asked.scoring):
            return f"it was measured for {entry.scoring}"
        if asked.topk > entry.topk:
            return f"it was measured for up to {entry.topk} results"
        return None

    def _read(self) -> list[Tuned] | str:
        """The entries, or what is wrong with the file; read again when it is replaced."""
        try:
            status = self._path.stat()
        except OSError:
            return []
        stamp = (status.st_mtime_ns, status.st_ino)
        if stamp != self._stamp:
            self._entries, self._stamp = read_tuned(self._path), stamp
        return self._entries


def read_tuned(path: Path) -> list[Tuned] | str:
    """Return the entries of a file, or why it cannot be used."""
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT or content["version"] != VERSION:
            return f"{path.name} is not used: it is of another version of divse"
        return [_entry(entry) for entry in content["entries"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{path.name} is not used: it is damaged ({type(error).__name__}: {error})"


def _entry(content: dict[str, Any]) -> Tuned:
    measured = tuple(_measured(each) for each in content["measured"])
    best = _measured(content["best"])
    kinds = {"recall": float, "topk": int, "queries": int, "sampled": bool}
    kinds |= {"state": str, "machine": str, "scoring": str}
    known = {name: content[name] for name in kinds}
    for name, value in known.items():
        if type(value) is not kinds[name]:
            raise TypeError(f"{name} is {value!r}")
    return Tuned(best, **known, measured=measured)


def _measured(content: dict[str, Any]) -> Measured:
    found = Measured(**content)
    for setting in (found.depth, found.probe):
        if setting is not None and (type(setting) is not int or setting < 1):
            raise ValueError(f"a setting is {setting!r}")
    if found.plan not in PLANS[1:]:
        raise ValueError(f"a plan is {found.plan!r}")
    return found


def write_tuned(snapshot: Snapshot, tuned: Tuned) -> None:
    """Store a measurement in place of one for the same use; those of other states are dropped.

    The gallery's lock is held, and the gallery must still be in the state that was measured.
    """
    path = snapshot.path / TUNED
    with writer_lock(snapshot.path):
        if Manifest.read(snapshot.path).checksum != tuned.state:
            raise GalleryError(f"{snapshot.path} was changed while it was measured: tune again")
        stored = read_tuned(path) if path.is_file() else []
        kept = [
            entry
            for entry in ([] if isinstance(stored, str) else stored)
            if entry.state == tuned.state and _use(entry) != _use(tuned)
        ]
        entries = sorted([*kept, tuned], key=lambda entry: entry.topk)
        content = {"format": FORMAT, "version": VERSION}
        content |= {"entries": [entry.to_dict() for entry in entries]}
        replace_file(path, json.dumps(content, indent=2).encode() + b"\n")


def _use(entry: Tuned) -> tuple[str, str, int]:
    return entry.machine, entry.scoring, entry.topk
