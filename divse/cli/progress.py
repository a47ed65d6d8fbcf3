"""Progress bars with rate and time left, on stderr, for whatever takes over a second.

There are none where nobody is looking (stderr is no terminal), unless they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Step = Callable[[int], object]
DELAY = 1  # seconds before a bar appears
_UNITS = {"tune": " settings"}  # of the work that is not counted in sets
_asked: bool | None = None


def show_progress(asked: bool | None) -> None:
    """Show bars or none; with None, if stderr is a terminal."""
    global _asked
    _asked = asked


def _bar(what: str, total: int | None, unit: str) -> Any:
    from tqdm import tqdm

    return tqdm(
        desc=what,
        total=total,
        unit=unit,
        unit_scale=unit == "B",
        unit_divisor=1024,
        delay=DELAY,
        disable=None if _asked is None else not _asked,
    )


@contextmanager
def bar(what: str, total: int | None, unit: str = " sets") -> Iterator[Step]:
    """Yield a function that takes the size of each step, of `total` in all."""
    with _bar(what, total, unit) as shown:
        yield shown.update


class SearchBars:
    """A bar for each piece of work that a Searcher reports, one at a time."""

    def __init__(self) -> None:
        self._shown: Any = None
        self._what, self._done = "", 0

    def __call__(self, what: str, step: int, total: int) -> None:
        """Take a step of the work called `what`."""
        if self._shown is None or self._what != what:
            self.close()
            self._what, self._done = what, 0
            self._shown = _bar(what, total, _UNITS.get(what, " sets"))
        self._shown.update(step)
        self._done += step  # a bar that is not shown does not count
        if self._done >= total:
            self.close()

    def close(self) -> None:
        """Remove the bar."""
        if self._shown is not None:
            self._shown.close()
            self._shown = None
