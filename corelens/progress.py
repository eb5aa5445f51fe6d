"""Progress bars, and one bar for several pieces of work."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from tqdm.auto import tqdm

_WHOLE: ContextVar["TotalProgress | None"] = ContextVar("_WHOLE", default=None)


@dataclass
class TotalProgress:
    """A bar over several pieces of work, which move it in turn."""

    bar: Any
    """tqdm's."""

    each: int = 0
    """How far one unit of the piece at hand moves it."""

    def begin(self, doing: str, each: int) -> None:
        """The next piece: what it is called, and how far one unit of it moves the bar."""
        self.each = each
        self.bar.set_postfix_str(doing)

    def skip(self, n: int) -> None:
        """Moves it by what was finished before, which says nothing of how fast the work is."""
        for count in ("initial", "n", "last_print_n"):
            setattr(self.bar, count, getattr(self.bar, count) + n)
        self.bar.refresh()


@contextmanager
def total_progress(total: int, doing: str, unit: str) -> Iterator[TotalProgress]:
    """One bar for all the work until the block ends; the pieces' own bars are not drawn."""
    with tqdm(total=total, desc=doing, unit=unit) as bar:
        outer = _WHOLE.set(made := TotalProgress(bar))
        try:
            yield made
        finally:
            _WHOLE.reset(outer)


@contextmanager
def progress(total: int, doing: str, unit: str, finished: int = 0) -> Iterator[Callable[[int], object]]:
    """A bar for one piece of work, or that piece's share of the bar of the whole.

    Args:
        total: Units of work.
        doing: What is being done.
        unit: What a unit is called.
        finished: Units that were finished before.

    Yields:
        What moves the bar by so many units.
    """
    if (of := _WHOLE.get()) is None:
        with tqdm(total=total, desc=doing, unit=unit, initial=finished) as bar:
            yield bar.update
    else:
        of.skip(finished * of.each)
        yield lambda n: of.bar.update(n * of.each)


def nested_progress() -> bool:
    """Whether a bar of the whole is drawn, beside which there should be no other."""
    return _WHOLE.get() is not None
