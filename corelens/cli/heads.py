"""`corelens heads`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from corelens.cli import options

if TYPE_CHECKING:
    from corelens.model import HookedMLLM


def heads(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN",
            help="Folder of a finished scan; and of sweeps and ablations of the same model, for effects.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="New folder for the pages.", file_okay=False)],
    chosen: Annotated[
        str | None, typer.Option("--heads", metavar="LIST", help="Heads that get a page, such as L3H14,L3H0.")
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(metavar="NUMBER", help="In place of --heads: the first heads.", show_default="5 %", min=1),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Metric that ranks heads and samples; the scan's first if not given."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=WHERE", help="Data of the scan, as it had them, for pictures and attention."),
    ] = None,
    limit: options.Limit = None,
    seed: options.Seed = 0,
    dtype: options.Dtype = "auto",
    device: options.DeviceOption = "auto",
) -> None:
    """Write a page for each of some heads, and a map that leads to them.

    A page has the head's scores and ranks, its effects, and the samples on which it scores most and least: with --data
    as pictures under its attention, for which the model runs; without, as names and scores. The pages need no server
    and no network.
    """
    if chosen is not None and top is not None:
        raise typer.BadParameter("they choose the same: give one.", param_hint="--heads, --top")
    from corelens.heads import HeadSet
    from corelens.reports.heads import check_new, read_runs, write_head_pages
    from corelens.reports.scanned_samples import ScannedSamples

    def load() -> "HookedMLLM":
        typer.echo(f"Loading {name}, for its heads' attention over the pictures.", err=True)
        return options.loaded(name, dtype, device)

    try:
        check_new(out)
        found = read_runs(runs, metric)
        name = found.scan.manifest["model"]
        head_set = found.ranking.top(top or 0.05) if chosen is None else HeadSet.parse(chosen)
        found.check_heads(head_set)
        if data is None:
            typer.echo("Without --data, pages have names and scores of samples, and no pictures.", err=True)
            samples = None
        else:
            samples = ScannedSamples.of(found.scan, options.samples(data, seed, limit, evidence=True), load)
        index = write_head_pages(out, found, head_set, samples)
    except (OSError, ValueError, TypeError, RuntimeError, ImportError) as cause:
        raise typer.BadParameter(str(cause)) from cause
    typer.echo(f"Pages: {index}")
