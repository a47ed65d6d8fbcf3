"""Progress bars on stderr for whatever takes over a second; none where nobody is looking."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Step = Callable[[int], object]


@contextmanager
def bar(what: str, total: int | None, unit: str = " sets") -> Iterator[Step]:
    """Yield a function that takes the size of each step, of `total` in all."""
    from tqdm import tqdm

    scaled = unit == "B"
    with tqdm(
        desc=what,
        total=total,
        unit=unit,
        unit_scale=scaled,
        unit_divisor=1024,
        delay=1,
        disable=None,
    ) as shown:
        yield shown.update


class SearchBars:
    """A bar for each piece of work that a Searcher reports, one at a time."""

    def __init__(self) -> None:
        self._shown: Any = None
        self._what, self._done = "", 0

    def __call__(self, what: str, step: int, total: int) -> None:
        """Take a step of the work called `what`."""
        from tqdm import tqdm

        if self._shown is None or self._what != what:
            self.close()
            self._what, self._done = what, 0
            self._shown = tqdm(desc=what, total=total, unit=" sets", delay=1, disable=None)
        self._shown.update(step)
        self._done += step  # a bar that is not shown does not count
        if self._done >= total:
            self.close()

    def close(self) -> None:
        """Remove the bar."""
        if self._shown is not None:
            self._shown.close()
            self._shown = None
