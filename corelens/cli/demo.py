"""`corelens demo`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from corelens.cli import options


def demo(
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder for report.html and demo.json.", file_okay=False)
    ] = Path("corelens-demo"),
    model: Annotated[
        str,
        typer.Option(metavar="MODEL", help="A shipped model, as corelens/toy-natural, or a folder of a trained one."),
    ] = "corelens/toy-worlds",
    as_json: options.AsJson = False,
) -> None:
    """Find the heads that fetch visual evidence for two tasks, and ablate them in both.

    The model is one that comes with corelens.
    """
    from corelens.demo import run_demo

    try:
        finished = run_demo(model)
    except (OSError, ValueError, ImportError) as cause:
        raise typer.BadParameter(str(cause), param_hint="--model") from cause
    finished.save(out)
    if as_json:
        print(json.dumps(finished.result, indent=1))
        return
    console = Console(highlight=False)
    console.print(f"\n[bold]{finished.result['model']}[/bold]  {finished.result['about']}")
    table = Table(
        box=box.SIMPLE,
        title=f"Accuracy in percent, with {finished.result['choices']['heads ablated']} heads ablated",
        title_justify="left",
    )
    for number, name in enumerate(finished.header):
        # On a narrow screen names wrap, and numbers stay whole.
        table.add_column(name, justify="right" if number else "left", no_wrap=number > 0)
    for row in finished.rows:
        table.add_row(*row, style="bold red" if row[0].startswith("top") else None)
    console.print(table)
    console.print("write: heads of the set that write anything; ablating the others changes nothing")
    for name, reason in finished.result["no control"].items():
        console.print(f"  {name}: {reason}")
    rankings = finished.result["expected"]
    predictions = Table("prediction", *(f"heads of {ranking}" for ranking in rankings), box=box.SIMPLE)
    for prediction in next(iter(rankings.values())):
        outcomes = (holds[prediction] for holds in rankings.values())
        predictions.add_row(prediction, *("[green]yes[/green]" if holds else "[red]no[/red]" for holds in outcomes))
    console.print(predictions)
    console.print(f"{finished.result['seconds']:.0f} seconds. Report: {out / 'report.html'}\n")
