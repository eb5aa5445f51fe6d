"""Links from error messages to their section of the docs, and the check of arguments with a few choices."""

from collections.abc import Iterable
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
    names: Iterable[object] = get_args(choices) or tuple(choices)
    if value not in names:
        raise ValueError(f"{name}={value!r} is not known; it is one of {', '.join(map(str, names))}.")
