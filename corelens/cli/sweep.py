"""`corelens sweep`."""

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from corelens.cli import options

if TYPE_CHECKING:
    from corelens.experiments.sweep import Sweep


def sweep(
    model: options.Model,
    data: options.Data,
    out: options.Out,
    how: options.How = "zero",
    per: Annotated[Literal["head", "layer", "group"], typer.Option(help="What is removed by itself.")] = "head",
    limit: options.Limit = None,
    seed: options.Seed = 0,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Remove every head, layer or group by itself, and measure what the answer loses."""
    from corelens.experiments.run_folder import atomic_write
    from corelens.experiments.sweep import run_sweep

    sets = options.samples(data, seed, limit)
    with options.resumable(out, "sweep"):
        found = run_sweep(options.loaded(model, dtype, device), sets, how, per, out)
    summary = _summary(found)
    text = json.dumps(summary, indent=1)
    atomic_write(out / "sweep.json", lambda path: path.write_text(text))
    if as_json:
        print(text)
        return
    console = Console(highlight=False, markup=False)
    console.print(f"\n{found.model}: {len(found.samples)} samples, each {per} removed by itself ({how})")
    table = Table("removed", "drop in log-probability of the answer, with 95 % interval", box=box.SIMPLE)
    for one in summary["units"][:10]:
        low, high = one["interval"]
        table.add_row(one["name"], f"{one['drop']:.3g} [{low:.3g}, {high:.3g}]")
    console.print(table)
    if found.skipped:
        console.print(f"{len(found.skipped)} samples were left out; sweep.json says why.")
    written = ["sweep.safetensors", "sweep.json"] if per == "head" else ["sweep.json"]
    console.print(f"All {len(found.units)}: {', '.join(str(out / name) for name in written)}\n")


def _summary(found: "Sweep") -> dict[str, Any]:
    """What the sweep found: every unit, that whose loss costs most first."""
    from corelens import metrics

    drop = found.drop.mean(0)
    low, high = metrics.bootstrap_interval(found.drop[:, None])
    return {
        "model": found.model,
        "samples": len(found.samples),
        **found.choices,
        "units": [
            {
                "name": found.units[index].name,
                "heads": str(found.units[index]),
                "drop": round(float(drop[index]), 5),
                "interval": [round(float(bound[0, index]), 5) for bound in (low, high)],
            }
            for index in drop.argsort(descending=True, stable=True).tolist()
        ],
        "skipped": found.skipped,
    }
