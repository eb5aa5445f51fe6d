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
    from corelens.model import HookedMLLM
    from corelens.scores import HeadScores


def study(
    model: options.Model,
    data: options.Data,
    out: options.Out,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer controls, and 40 samples of each data set.")] = False,
    compare_with: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of a finished study of another model, to compare where its heads lie; or several.",
        ),
    ] = None,
    time_again: Annotated[
        bool, typer.Option("--time-again", help="Measure speed anew in a folder that holds it.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(metavar="NUMBER", help="Where answers are cut off.", min=1)] = 32,
    box_unit: options.BoxUnitOption = None,
    limit: options.Limit = None,
    seed: options.Seed = 0,
    dtype: options.Dtype = "auto",
    device: options.DeviceOption = "auto",
    ray: options.Ray = None,
    actors: options.Actors = None,
    gpus: options.Gpus = None,
    as_json: options.AsJson = False,
) -> None:
    """Test the paper's claims on a model. Verdicts by rules that are set before the run, and a report."""
    from corelens.experiments.remote import call
    from corelens.experiments.resumable import check_scoring, flatten_datasets
    from corelens.reports.study_folder import save
    from corelens.study import FULL, QUICK, run_study
    from corelens.study.budget import halves, measure_throughput, planned_work

    budget = QUICK if quick else FULL
    most_draws = budget.n_matched
    limit = min(limit or 40, 40) if quick else limit
    compared_models = {str(folder): _scores(folder) for folder in compare_with or ()}
    samples = {name: list(dataset) for name, dataset in options.samples(data, seed, limit, evidence=True).items()}
    console = Console(highlight=False, markup=False, stderr=True)
    with options.resumable(out, "study"):
        texts = {name: list(dataset) for name, dataset in options.text_samples(model, limit).items()}
        _, tested = halves(samples)  # too few samples are an error before the model is loaded
        check_scoring(flatten_datasets({**samples, **texts}), box_unit)
        with options.placed(model, dtype, device, ray, actors, gpus) as placed:
            throughput = measure_throughput(placed, samples, out, max_new_tokens, box_unit)
            budget = budget.affordable(throughput, sum(map(len, tested.values())))
            works = planned_work(samples, texts, budget, call(placed, _n_heads))
            for name, work in works.items():
                unit = "answers" if work.answers else "passes"
                console.print(f"{name}: {work.samples} samples x {work.conditions} = {work.total:,} {unit}")
            seconds = sum(throughput.remaining_seconds(work, out) for work in works.values())
            console.print(
                f"What is left takes about {timedelta(seconds=round(seconds))}, at {throughput.seconds_per_pass:.2g} "
                f"seconds a pass and {throughput.seconds_per_answer:.2g} an answer. Write-matched heads are "
                f"drawn {budget.n_matched} times, of at most {most_draws}.",
                soft_wrap=True,
            )
            results = run_study(
                placed, samples, texts, out, budget, max_new_tokens, box_unit, compared_models, time_again
            )
    summary = save(results, out, {"data": ",".join(data), "seed": seed, "limit": limit, "quick": quick})
    if as_json:
        print(json.dumps(summary, indent=1))
        return
    _print_findings(summary, out)


def _n_heads(model: "HookedMLLM") -> int:
    return len(model.heads)


def _scores(folder: Path) -> "HeadScores":
    """Scores by which another study ranked heads."""
    if not (path := folder / "scan" / "ram.safetensors").is_file():
        message = f"{folder} is no finished study: it has no scan/{path.name}."
        raise typer.BadParameter(message, param_hint="--compare-with")
    return options.ranking(path, option="--compare-with")


def _print_findings(summary: dict[str, Any], out: Path) -> None:
    console = Console(highlight=False, markup=False)
    table = Table("claim", "verdict", "needs met", box=box.SIMPLE)
    for finding in summary["findings"]:
        met = [measurement["met"] for measurement in finding["measurements"] if measurement["needed"]]
        table.add_row(
            finding["claim"].partition(":")[0],
            finding["verdict"],
            f"{met.count(True)} of {len(met)}" if met else "none measured",
        )
    console.print(f"\n{summary['model']}")
    console.print(table)
    console.print(f"Why, and what would change it: {out / 'study.html'}", soft_wrap=True)
    console.print(f"All numbers: {out / 'study.json'}\n", soft_wrap=True)
