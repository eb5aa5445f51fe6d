"""`corelens explain`."""

import re
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown

PAGE = Path(__file__).parents[1] / "errors.md"
"""The errors page of the docs, which is part of the package."""


def explain(
    error: Annotated[str | None, typer.Argument(metavar="NAME", help="Such as other-run.", show_default=False)] = None,
) -> None:
    """Explain an error, by the name that ends its message. Without a name, list all."""
    sections = error_sections()
    if error is None:
        for name, (title, _) in sections.items():
            typer.echo(f"{name:<20}{title}")
        return
    if error not in sections:
        raise typer.BadParameter(f"{error!r} is not explained; `corelens explain` lists what is.")
    title, text = sections[error]
    Console().print(Markdown(f"**{title}**\n\n{text}", hyperlinks=False))


def error_sections() -> dict[str, tuple[str, str]]:
    """Title and text of every section of the errors page, by its name."""
    section = re.compile(r"^### (.+?) \{ #(\S+) \}\n(.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)
    return {name: (title, text.strip()) for title, name, text in section.findall(PAGE.read_text(encoding="utf-8"))}
