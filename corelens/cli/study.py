"""`corelens study`."""

import json
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from corelens.cli import options

if TYPE_CHECKING:
    from corelens.scores import HeadScores


def study(
    model: options.Model,
    data: options.Data,
    out: options.Out,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer controls, and 40 samples of each data set.")] = False,
    beside: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of a finished study of another model, to compare where its heads lie; or several."),
    ] = None,
    time_again: Annotated[
        bool, typer.Option("--time-again", help="Measure speed anew in a folder that holds it.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Where answers are cut off.", min=1)] = 32,
    box_unit: options.BoxUnit = None,
    limit: options.Limit = None,
    seed: options.Seed = 0,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Test the paper's five claims on a model. Verdicts by rules that are set before the run, and a report."""
    from corelens.experiments.conditions import check_scoring
    from corelens.experiments.resumable import flatten_datasets
    from corelens.reports.study import save
    from corelens.study import FULL, QUICK, run_study
    from corelens.study.budget import measure_throughput, planned_work

    size = QUICK if quick else FULL
    limit = min(limit or 40, 40) if quick else limit
    asked = ",".join(data)
    others = {str(folder): _scores(folder) for folder in beside or ()}
    sets = {name: list(own) for name, own in options.samples(data, seed, limit, evidence=True).items()}
    console = Console(highlight=False, markup=False, stderr=True)
    with options.resumable(out, "study"):
        texts = {name: list(own) for name, own in options.texts(model, limit).items()}
        works = planned_work(sets, texts, size)
        for name, work in works.items():
            kind = "answers" if work.answers else "passes"
            console.print(f"{name}: {work.samples} samples x {work.conditions} = {work.total:,} {kind}")
        check_scoring(flatten_datasets({**sets, **texts}), box_unit)
        hooked = options.loaded(model, dtype, device)
        timed = measure_throughput(hooked, sets, out, max_new_tokens, box_unit)
        seconds = sum(timed.of(work, out) for work in works.values())
        console.print(
            f"What is left takes about {timedelta(seconds=round(seconds))}, at {timed.scanned:.2g} seconds a pass and "
            f"{timed.answered:.2g} an answer."
        )
        found = run_study(hooked, sets, texts, out, size, max_new_tokens, box_unit, others, time_again)
    result = save(found, out, {"data": asked, "seed": seed, "limit": limit, "quick": quick})
    if as_json:
        print(json.dumps(result, indent=1))
        return
    _show(result, out)


def _scores(folder: Path) -> "HeadScores":
    """What the heads of another study are ranked by."""
    if not (scores := folder / "scan" / "ram.safetensors").is_file():
        raise typer.BadParameter(f"{folder} is no finished study: it has no scan/{scores.name}.", param_hint="--beside")
    return options.ranking(scores, option="--beside")


def _show(result: dict[str, Any], out: Path) -> None:
    console = Console(highlight=False, markup=False)
    table = Table("claim", "verdict", "needed, and measured with 95 % interval", box=box.SIMPLE)
    for finding in result["findings"]:
        needed = [f"{one['name']} {one['needed']}: {one['said']}" for one in finding["effects"] if one["needed"]]
        table.add_row(finding["claim"], finding["verdict"], "\n".join(needed) or finding["notes"][0])
    console.print(f"\n{result['model']}")
    console.print(table)
    console.print(f"All numbers: {out / 'study.json'}, report: {out / 'study.html'}\n")
