"""Search as a sequence of scans: parts of the gallery that grow as the thresholds rise.

The first part is so small that its sets fit whatever their scores. After n sets in no particular
order, some `topk` of the next n beat the threshold, so a later part may be many times what was seen
before. All parts are queued without waiting. Where rows of `Best` were too short after all (scores
that ascend, say), the device has skipped the rest, and the part that failed is scanned again in
halves: half by half, each fits in the end.

Any scan plugs in. `Scan` is called with a part and the position of its first set, and appends with
`best.append`, in any order, at least the sets that belong to the best `topk`; before it returns,
their keys must be exact, so a scan by upper bounds (no bound may be NaN) then scores what it
appended exactly and puts that in (rescoring.py). Nothing may wait for the device.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import cycle

import torch
from torch import Tensor

from divse_kernels.best import Best, Progress
from divse_kernels.staging import Staging

#: What describes some sets: tensors with one row a set, such as values and lengths, or None.
Part = tuple[Tensor | None, ...]
Scan = Callable[[Part, int, Best], None]


def sets_of(part: Part) -> int:
    """Number of sets of a part."""
    return next(len(rows) for rows in part if rows is not None)


def cut(part: Part, first: int, start: int, stop: int) -> tuple[Part, int]:
    """The sets from start to stop of a part at position `first`, and their position."""
    return tuple(None if rows is None else rows[start:stop] for rows in part), first + start


@dataclass(frozen=True)
class Mark:
    """A moment of a search: how often it had recovered, and the device's progress."""

    recoveries: int
    progress: Progress


@dataclass
class Driver:
    """Feeds parts to a scan, in order of position, and merges after each."""

    scan: Scan
    best: Best
    _queued: list[tuple[Part, int]] = field(default_factory=list)  # and not known to be merged
    _merges: int = 0  # known of the device since it last recovered
    _recoveries: int = 0
    _seen: int = 0

    def feed(self, part: Part, first: int) -> None:
        """Queue the scans of a part whose first set is at position `first`."""
        start, count = 0, sets_of(part)
        while start < count:
            stop = min(count, start + self._next_size())
            self._queue(*cut(part, first, start, stop))
            self._seen += stop - start
            start = stop

    def mark(self) -> Mark:
        """Remember what has been fed until now, without waiting."""
        return Mark(self._recoveries, self.best.progress())

    def settle(self, mark: Mark | None = None) -> None:
        """Wait until all that was fed before the mark (None: until now) is merged."""
        mark = mark or self.mark()
        if mark.recoveries < self._recoveries:
            return  # a recovery ends when all that was fed is merged
        while self._fails(mark):
            self._scan_again()
            mark = self.mark()

    def _fails(self, mark: Mark) -> bool:
        """Wait for a mark and forget what is merged -> whether a row was too short."""
        failed, merges = mark.progress.read()
        del self._queued[: merges - self._merges]
        self._merges = merges
        return failed

    def _next_size(self) -> int:
        """Sets of the next part.

        How many of the next r * n sets beat the k-th best of n is a sum of k geometric variables of
        mean r: beyond r (k + 6 sqrt(k) + 14) for one query in a million.
        """
        k = self.best.topk
        growth = self.best.room / (k + 6 * math.sqrt(k) + 14)
        return max(self.best.room, int(self._seen * growth))

    def _queue(self, part: Part, first: int) -> None:
        self._queued.append((part, first))
        self.scan(part, first, self.best)
        self.best.merge()

    def _scan_again(self) -> None:
        """Queue the part that failed, in halves, and all that was queued after it."""
        (part, first), *rest = self._queued
        count = sets_of(part)
        if count <= self.best.room:
            raise RuntimeError(f"a scan of {count} sets appended more than {self.best.room} sets")
        self.best.recover()
        self._recoveries += 1
        self._queued, self._merges = [], 0
        self._queue(*cut(part, first, 0, count // 2))
        self._queue(*cut(part, first, count // 2, count))
        for later in rest:
            self._queue(*later)


def drive(driver: Driver, parts: Iterable[tuple[int, Part]], device: torch.device) -> None:
    """Scan parts (position of the first set, tensors) from anywhere, in order of position.

    Parts on the host go through `Staging`: one is copied to the device while the one before is
    scanned. A part that is on the device already must stay as it is until the second one after it
    is asked for.
    """
    staging = (Staging(device), Staging(device))
    marks: list[Mark | None] = [None, None]
    parts = iter(parts)
    for slot in cycle((0, 1)):
        if (mark := marks[slot]) is not None:
            driver.settle(mark)  # before the memory of what was here is used again, by anyone
        if (found := next(parts, None)) is None:
            break
        first, part = found
        driver.feed(staging[slot].upload(staging[slot].prepare(part)), first)
        marks[slot] = driver.mark()
    driver.settle()
