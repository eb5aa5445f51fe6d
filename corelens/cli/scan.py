"""`corelens scan`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from corelens.cli import options

if TYPE_CHECKING:
    from corelens.scores import HeadScores


def scan(
    model: options.Model,
    data: options.Data,
    out: options.Out,
    metric: Annotated[str, typer.Option(metavar="NAMES", help="Metrics, with commas between them.")] = "ram,ram_last",
    limit: options.Limit = None,
    batch: Annotated[str, typer.Option(metavar="NUMBER", help="Most samples in a pass.")] = "auto",
    rule: Annotated[
        Literal["overlap", "centre", "cover", "fraction", "as_published"],
        typer.Option(help="Rule by which a box of evidence becomes tokens."),
    ] = "overlap",
    seed: options.Seed = 0,
    dtype: options.Dtype = "auto",
    device: options.DeviceOption = "auto",
    ray: options.Ray = None,
    actors: options.Actors = None,
    gpus: options.Gpus = None,
    as_json: options.AsJson = False,
) -> None:
    """Score every head of a model on data with evidence regions."""
    if batch != "auto" and not (batch.isdecimal() and int(batch)):
        raise typer.BadParameter(f"{batch!r} is neither auto nor a number of samples.", param_hint="--batch")
    from corelens.experiments.scan import resolve_metrics, scan_metrics
    from corelens.experiments.scan_summary import scan_summary

    names = [name.strip() for name in metric.split(",")]
    datasets = options.samples(data, seed, limit, evidence=True)
    with options.resumable(out, "scan"):
        resolve_metrics(names)  # an unknown metric is an error before the model is loaded
        with options.placed(model, dtype, device, ray, actors, gpus) as placed:
            scores = scan_metrics(
                placed, datasets, names, rule, batch_size=16 if batch == "auto" else int(batch), out=out
            )
    summaries = {name: scan_summary(of_metric) for name, of_metric in scores.items()}
    if as_json:
        print(json.dumps(summaries, indent=1))
        return
    _print_summaries(summaries, next(iter(scores.values())), out)


def _print_summaries(summaries: dict[str, Any], scores: "HeadScores", out: Path) -> None:
    from corelens.experiments.scan_summary import describe_groups

    console = Console(highlight=False, markup=False)
    console.print(f"\n{scores.model}: {len(scores.samples)} samples, {scores.n_heads} heads")
    table = Table("metric", "top 5 % of heads, with 95 % intervals over all heads", box=box.SIMPLE)
    table.add_column("rho 0.5", justify="right")
    table.add_column("split-half overlap", justify="right")
    for name, summary in summaries.items():
        heads = [f"{head['head']} {options.with_interval(head['score'], head['interval'])}" for head in summary["top"]]
        lines = [*heads[:6], f"and {len(heads) - 6} more"] if len(heads) > 6 else heads
        rho, overlap = (str(summary.get(key, "")) for key in ("rho_0.5", "split-half overlap"))
        table.add_row(name, "\n".join(lines), rho, overlap)
    console.print(table)
    console.print(
        "rho 0.5: the smallest share of heads that holds half of the score. split-half overlap: share of the top 5 % "
        "of heads that two random halves of the samples have in common.",
        soft_wrap=True,
    )
    for name, summary in summaries.items():
        if note := describe_groups(summary):
            console.print(f"{name}: {note}", soft_wrap=True)
    for sample, reason in list(scores.skipped.items())[:5]:
        console.print(f"skipped: {sample}: {reason}")
    if len(scores.skipped) > 5:
        console.print(f"and {len(scores.skipped) - 5} more, in .skipped of the scores")
    console.print(f"Scores: {', '.join(str(out / f'{name}.safetensors') for name in summaries)}\n")
