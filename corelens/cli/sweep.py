"""`corelens sweep`."""

from typing import Annotated, Literal

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from corelens.cli import options


def sweep(
    model: options.Model,
    data: options.Data,
    out: options.Out,
    how: options.How = "zero",
    per: Annotated[Literal["head", "layer", "group"], typer.Option(help="Unit that is ablated by itself.")] = "head",
    fdr: Annotated[
        float, typer.Option(metavar="SHARE", help="False discovery rate at which units are said to have an effect.")
    ] = 0.05,
    limit: options.Limit = None,
    seed: options.Seed = 0,
    dtype: options.Dtype = "auto",
    device: options.DeviceOption = "auto",
    ray: options.Ray = None,
    actors: options.Actors = None,
    gpus: options.Gpus = None,
    as_json: options.AsJson = False,
) -> None:
    """Ablate each head, layer or group of heads by itself.

    The effect is the drop in the log-probability of the answer.
    """
    if not 0 < fdr < 1:
        raise typer.BadParameter(f"{fdr:g} is not between 0 and 1.", param_hint="--fdr")
    from corelens.experiments.run_folder import write_summary
    from corelens.experiments.sweep import run_sweep, sweep_summary

    datasets = options.samples(data, seed, limit)
    with options.resumable(out, "sweep"), options.placed(model, dtype, device, ray, actors, gpus) as placed:
        swept = run_sweep(placed, datasets, how, per, out)
    summary = sweep_summary(swept, fdr)
    text = write_summary(out / "sweep.json", summary)
    if as_json:
        print(text)
        return
    console = Console(highlight=False, markup=False)
    console.print(f"\n{swept.model}: {len(swept.samples)} samples, each {per} ablated by itself ({how})")
    drop = f"drop in log-probability of the answer, with 95 % interval over all {per}s"
    table = Table("ablated", drop, box=box.SIMPLE)
    for unit in summary["units"][:10]:
        table.add_row(unit["name"], options.with_interval(unit["drop"], unit["interval"]))
    console.print(table)
    if (n := summary["with an effect"]) is not None:
        console.print(f"{n} of {len(swept.units)} {per}s have an effect, at a false discovery rate of {fdr:g}.")
    console.print("A scan may rank heads otherwise: it measures where they attend, not what they are needed for.")
    options.print_skipped(console, swept.skipped, "sweep.json")
    files = ["sweep.safetensors", "sweep.json"] if per == "head" else ["sweep.json"]
    console.print(f"All {len(swept.units)}: {', '.join(str(out / name) for name in files)}\n")
