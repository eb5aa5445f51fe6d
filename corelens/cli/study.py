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
        bool, typer.Option("--time-again", help="Measure speed again in a folder that holds it.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Length at which answers are cut off.", min=1)] = 32,
    box_unit: options.BoxUnit = None,
    limit: options.Limit = None,
    seed: options.Seed = 0,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Test the paper's five claims on a model, by rules that are set before the run, and write a report."""
    from corelens.experiments.conditions import check_scoring
    from corelens.experiments.resumable import flatten_datasets
    from corelens.reports.study import save
    from corelens.study import FULL, QUICK, run_study
    from corelens.study.budget import measure_throughput, planned_work

    size = QUICK if quick else FULL
    limit = min(limit or 40, 40) if quick else limit
    others = {str(folder): _study_scores(folder) for folder in beside or ()}
    datasets = {name: list(samples) for name, samples in options.samples(data, seed, limit, evidence=True).items()}
    console = Console(highlight=False, markup=False, stderr=True)
    with options.resumable(out, "study"):
        texts = {name: list(samples) for name, samples in options.texts(model, limit).items()}
        works = planned_work(datasets, texts, size)
        for name, work in works.items():
            kind = "answers" if work.answers else "passes"
            console.print(f"{name}: {work.samples} samples x {work.conditions} = {work.total:,} {kind}")
        check_scoring(flatten_datasets({**datasets, **texts}), box_unit)
        hooked = options.loaded(model, dtype, device)
        throughput = measure_throughput(hooked, datasets, out, max_new_tokens, box_unit)
        seconds = sum(throughput.of(work, out) for work in works.values())
        console.print(
            f"What is left takes about {timedelta(seconds=round(seconds))}, at {throughput.scanned:.2g} seconds a pass "
            f"and {throughput.answered:.2g} an answer."
        )
        finished = run_study(hooked, datasets, texts, out, size, max_new_tokens, box_unit, others, time_again)
    result = save(finished, out, {"data": ",".join(data), "seed": seed, "limit": limit, "quick": quick})
    if as_json:
        print(json.dumps(result, indent=1))
        return
    _print_result(result, out)


def _study_scores(folder: Path) -> "HeadScores":
    """Retrieval attention mass of another study."""
    if not (scores := folder / "scan" / "ram.safetensors").is_file():
        raise typer.BadParameter(f"{folder} is no finished study: it has no scan/{scores.name}.", param_hint="--beside")
    return options.ranking(scores, option="--beside")


def _print_result(result: dict[str, Any], out: Path) -> None:
    console = Console(highlight=False, markup=False)
    table = Table("claim", "verdict", "needed, and measured with 95 % interval", box=box.SIMPLE)
    for finding in result["findings"]:
        effects = [effect for effect in finding["effects"] if effect["needed"]]
        lines = [f"{effect['name']} {effect['needed']}: {effect['said']}" for effect in effects]
        table.add_row(finding["claim"], finding["verdict"], "\n".join(lines) or finding["notes"][0])
    console.print(f"\n{result['model']}")
    console.print(table)
    console.print(f"All numbers: {out / 'study.json'}, report: {out / 'study.html'}\n")
