"""`corelens demo`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table


def demo(
    out: Annotated[Path, typer.Option(help="Folder for report.html and demo.json.", file_okay=False)] = Path(
        "corelens-demo"
    ),
    model: Annotated[
        str, typer.Option(help="A shipped model: corelens/toy or corelens/toy-natural, or a folder of a trained one.")
    ] = "corelens/toy",
    as_json: Annotated[bool, typer.Option("--json", help="Print demo.json, no table.")] = False,
) -> None:
    """Find the heads of a shipped model that fetch the evidence, and remove them."""
    from corelens.demo import header, run_demo

    try:
        found = run_demo(model)
    except (OSError, ValueError) as cause:
        raise typer.BadParameter(str(cause), param_hint="--model") from cause
    found.save(out)
    if as_json:
        print(json.dumps(found.result, indent=1))
        return
    console = Console(highlight=False)
    console.print(f"\n[bold]{found.result['model']}[/bold]  {found.result['about']}")
    table = Table(
        box=box.SIMPLE, title="Accuracy in percent, with 5 percent of all heads removed", title_justify="left"
    )
    for number, name in enumerate(header(found.result)[:-1]):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for row in found.rows:
        table.add_row(*row[:-1], style="bold red" if row[0] == "top" else None)
    console.print(table)
    for row in found.rows:
        if row[-1].startswith("L"):
            console.print(f"  {row[0]}: {row[-1]}")
    console.print()
    for said, true in found.result["expected"].items():
        console.print(f"  {'[green]yes[/green]' if true else '[red]no [/red]'}  {said}")
    console.print(f"\n{found.result['seconds']:.0f} seconds. Report: {out / 'report.html'}\n")
