"""`corelens report`."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="Folder of a finished scan, sweep, ablate, accelerate or study.", show_default=False
        ),
    ],
) -> None:
    """Write one HTML page about a finished run.

    It says what was run, its numbers, figures, and limits. The page needs no network and is light or dark as the
    reader's screen. That of a study is written again.
    """
    from corelens.reports import write_report

    try:
        file = write_report(run)
    except (OSError, ValueError) as cause:
        raise typer.BadParameter(str(cause)) from cause
    typer.echo(f"Report: {file}")
