"""`corelens study`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from corelens.cli import options


def study(
    model: options.Model,
    data: options.Data,
    out: options.Out,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer controls, and 40 samples of each data set.")] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Where answers are cut off.", min=1)] = 32,
    limit: options.Limit = None,
    seed: options.Seed = 0,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Test the paper's five claims on a model. Verdicts by rules that are set before the run, and a report."""
    from corelens.study import FULL, QUICK, run_study
    from corelens.study.report import save
    from corelens.study.run import costs

    size = QUICK if quick else FULL
    limit = min(limit or 40, 40) if quick else limit
    asked = ",".join(data)
    sets = {name: list(own) for name, own in options.samples(_separate(data), seed, limit, evidence=True).items()}
    with options.resumable(out):
        texts = {name: list(own) for name, own in options.texts(model, limit).items()}
        console = Console(highlight=False, markup=False, stderr=True)
        for work, (samples, conditions) in costs(sets, texts, size).items():
            console.print(f"{work}: {samples} samples x {conditions} = {samples * conditions:,}")
        found = run_study(options.loaded(model, dtype, device), sets, texts, out, size, max_new_tokens)
    result = save(found, out, {"data": asked, "seed": seed, "limit": limit, "quick": quick})
    if as_json:
        print(json.dumps(result, indent=1))
        return
    _show(result, out)


def _separate(data: list[str]) -> list[str]:
    """Data sets with commas between them; what has no name of its own is a setting of the one before."""
    from corelens.data import registry

    known = {"scenes", *registry.READERS, *registry.WORLDS}
    found: list[str] = []
    for one in ",".join(data).split(","):
        if found and one.partition("=")[0] not in known:
            found[-1] += f",{one}"
        else:
            found.append(one)
    return found


def _show(result: dict[str, Any], out: Path) -> None:
    console = Console(highlight=False, markup=False)
    table = Table("claim", "verdict", "needed, and measured with 95 % interval", box=box.SIMPLE)
    for finding in result["findings"]:
        needed = [
            f"{one['name']} {one['needed']}: {_number(one['value'])} [{_number(one['low'])}, {_number(one['high'])}]"
            for one in finding["effects"]
            if one["needed"]
        ]
        table.add_row(finding["claim"], finding["verdict"], "\n".join(needed) or finding["notes"][0])
    console.print(f"\n{result['model']}")
    console.print(table)
    console.print(f"All numbers: {out / 'study.json'}, report: {out / 'study.html'}\n")


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"
