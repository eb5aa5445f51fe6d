"""Progress bars, and one total bar for several pieces of work."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm.auto import tqdm

_TOTAL: ContextVar["TotalProgress | None"] = ContextVar("_TOTAL", default=None)


class TotalProgress:
    """A bar over several pieces of work, each of which advances it in turn."""

    def __init__(self, total: int, description: str, unit: str) -> None:
        self._options: dict[str, Any] = dict(total=total, desc=description, unit=unit)
        self.bar: Any = tqdm(**self._options)  # Any: a terminal's bar or a notebook's
        self.piece, self.steps_per_unit = "", 0

    def begin(self, piece: str, steps_per_unit: int) -> None:
        """Name the next piece, and set by how much one unit of it advances the bar."""
        self.piece, self.steps_per_unit = piece, steps_per_unit
        self.bar.set_postfix_str(piece)

    def skip(self, n_units: int) -> None:
        """Advance the bar by units of the piece that were finished before, which do not count for its speed."""
        if not n_units:
            return
        # A new bar, since tqdm takes what is finished at the start alone.
        self.bar.leave = False
        self.bar.close()
        finished = self.bar.n + n_units * self.steps_per_unit
        self.bar = tqdm(**self._options, initial=finished)
        self.bar.set_postfix_str(self.piece)

    def advance(self, n_units: int) -> None:
        """Advance the bar by units of the piece."""
        self.bar.update(n_units * self.steps_per_unit)

    def extend(self, n: int) -> None:
        """Add to the total, where a piece turns out to be more work than was planned, or less."""
        self._options["total"] += n
        self.bar.total += n
        self.bar.refresh()


@contextmanager
def total_progress(total: int, description: str, unit: str) -> Iterator[TotalProgress]:
    """Draw one bar for all the work until the block ends, and none for its pieces."""
    bar = TotalProgress(total, description, unit)
    token = _TOTAL.set(bar)
    try:
        yield bar
    finally:
        _TOTAL.reset(token)
        bar.bar.close()


@contextmanager
def progress(total: int, description: str, unit: str, finished: int = 0) -> Iterator[Callable[[int], object]]:
    """Draw a bar for one piece of work, or advance the total bar if there is one.

    Args:
        total: Units of work.
        description: The work, in a word or two.
        unit: Name of a unit.
        finished: Units that were finished before.

    Yields:
        A function that advances the bar by a number of units.
    """
    bar = _TOTAL.get()
    if bar is not None:
        bar.skip(finished)
        yield bar.advance
    else:
        with tqdm(total=total, desc=description, unit=unit, initial=finished) as own_bar:
            yield own_bar.update


def nested_progress() -> bool:
    """True if a total bar is drawn, so that other bars should not be."""
    return _TOTAL.get() is not None
