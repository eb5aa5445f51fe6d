"""Errors: links to their section of the docs, the check of a choice, and imports that need an extra."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, get_args

PAGE = "docs/errors.md"
"""Path in the repository: the docs have no published address yet."""


def docs_link(anchor: str) -> str:
    """Return the link to a section of the errors page that ends a message."""
    return f"({PAGE}#{anchor})"


def without_docs_link(message: str) -> str:
    """Strip the link from a message, so that it can be part of one that has its own."""
    return message.partition(f" ({PAGE}#")[0]


def check_choice(name: str, value: object, choices: Any) -> None:
    """Raise a ValueError if an argument is not one of its choices.

    Args:
        name: The argument's name, as the caller writes it.
        value: The argument.
        choices: A `Literal`, or the choices themselves.
    """
    known: Iterable[object] = get_args(choices) or tuple(choices)
    if value not in known:
        raise ValueError(f"{name}={value!r} is not known; it is one of {', '.join(map(str, known))}.")


@contextmanager
def optional_import(extra: str) -> Iterator[None]:
    """Name the extra to install if an import in the `with` block fails.

    Args:
        extra: One of the optional dependencies in pyproject.toml.

    Raises:
        ModuleNotFoundError: If the package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as cause:
        package = str(cause.name).partition(".")[0]
        raise ModuleNotFoundError(
            f"{package} is not installed: pip install 'corelens[{extra}]'.", name=package
        ) from cause
