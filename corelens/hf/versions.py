"""Versions of transformers that corelens is tested with, and what they name differently."""

import re
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from corelens.errors import docs_link

TESTED = ((5, 23), (5, 24))
"""Versions of transformers that are tested: the oldest by all architectures and hooks, the newest by everything."""


def _release(installed: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", installed)[:2])


def check_transformers(installed: str) -> None:
    """Check that a version of transformers is one that corelens supports.

    Warns:
        UserWarning: If it is newer than those that were tested.

    Raises:
        ImportError: If it is older.
    """
    oldest, newest = (".".join(map(str, tested)) for tested in TESTED)
    if _release(installed) < TESTED[0]:
        raise ImportError(
            f"corelens needs transformers {oldest} or newer, and {installed} is installed: "
            f"pip install 'transformers>={oldest}'. {docs_link('transformers')}"
        )
    if _release(installed) > TESTED[1]:
        warnings.warn(
            f"corelens is tested with transformers {oldest} to {newest}, and {installed} is installed: if a model is "
            f"refused or raises, try pip install 'transformers=={newest}.*'. {docs_link('transformers')}",
            stacklevel=2,
        )


CACHE = "past_key_values" if _release(version("transformers")) < (5, 24) else "cache"
"""Name of keys and values among the arguments and the outputs of models; renamed by transformers 5.24."""


def given_cache(arguments: Mapping[str, Any]) -> Any:
    """Return the keys and values among the arguments of a model, by whichever name they were given, or None."""
    return next((arguments[name] for name in ("cache", "past_key_values") if arguments.get(name) is not None), None)
