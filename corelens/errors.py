"""Errors: where the docs explain them, checks of choices and files, and imports that need an extra."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, get_args

EXPLAIN = "corelens explain"
"""The command that prints a section of the errors page: the docs have no published address yet."""


def docs_link(anchor: str) -> str:
    """Return the end of a message that has a section on the errors page: the command that prints it."""
    return f"({EXPLAIN} {anchor})"


def without_docs_link(message: str) -> str:
    """Strip that end from a message, so that it can be part of one that has its own."""
    return message.partition(f" ({EXPLAIN} ")[0]


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


def check_file(path: str | PathLike[str], ending: str, otherwise: str) -> None:
    """Raise an error if a file cannot be written, or its name does not end as its form does.

    Args:
        path: The file.
        ending: The ending of its form.
        otherwise: What writes another form, for the message.
    """
    path = Path(path)
    if path.suffix != ending:
        raise ValueError(f"{path.name} does not end in {ending}, as its form is; {otherwise}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {str(path.parent)!r} to write {path.name} into.")


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
