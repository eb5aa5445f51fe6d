"""Errors: the link to their section in the docs, and the check of a choice."""

from collections.abc import Iterable
from typing import Any, get_args

PAGE = "docs/errors.md"
"""In the repository: the docs have no published address yet."""


def docs_link(anchor: str) -> str:
    """Link to a section of the errors page; the end of a message."""
    return f"({PAGE}#{anchor})"


def without_docs_link(message: str) -> str:
    """Strip that link, so that the message can be part of one that has its own."""
    return message.partition(f" ({PAGE}#")[0]


def check_choice(name: str, value: object, choices: Any) -> None:
    """Raise a ValueError if an argument is none of its choices.

    Args:
        name: The argument's name, as the caller writes it.
        value: The argument.
        choices: A `Literal`, or the choices themselves.
    """
    known: Iterable[object] = get_args(choices) or tuple(choices)
    if value not in known:
        raise ValueError(f"{name}={value!r} is not known; it is one of {', '.join(map(str, known))}.")
