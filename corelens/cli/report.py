"""`corelens report`."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="Folder of a finished scan, sweep, ablate, accelerate or study, or scan of key tokens.",
            show_default=False,
        ),
    ],
) -> None:
    """Write the HTML report of a finished run.

    It has the settings of the run, its numbers, figures and limits, needs no network, and is light or dark as the
    reader's screen. The report of a study is written again.
    """
    from corelens.reports import write_report

    try:
        file = write_report(run)
    except (OSError, ValueError) as cause:
        raise typer.BadParameter(str(cause)) from cause
    typer.echo(f"Report: {file}")
