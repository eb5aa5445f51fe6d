"""`corelens scan`."""

import json
from functools import partial
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
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="CLUSTER", help="Scan on a Ray cluster: auto: this machine's; local: a new one here; or HOST:PORT."
        ),
    ] = None,
    actors: Annotated[
        int | None, typer.Option(metavar="NUMBER", help="With --ray: most models at a time.", show_default="2", min=1)
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            metavar="NUMBER", help="With --ray: GPUs of each model.", show_default="1 if there are any", min=0
        ),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Score every head of a model on data with evidence regions."""
    if batch != "auto" and not (batch.isdecimal() and int(batch)):
        raise typer.BadParameter(f"{batch!r} is neither auto nor a number of samples.", param_hint="--batch")
    if ray is None and (actors is not None or gpus is not None):
        raise typer.BadParameter("they configure Ray actors; give --ray too.", param_hint="--actors, --gpus")
    from corelens.experiments.ray import scan_on_ray
    from corelens.experiments.scan import resolve_metrics, scan_metrics
    from corelens.experiments.scan_summary import scan_summary

    names = [name.strip() for name in metric.split(",")]
    datasets = options.samples(data, seed, limit, evidence=True)
    load = partial(options.loaded, model, dtype, device)
    with options.resumable(out, "scan"):
        resolve_metrics(names)  # an unknown metric is an error before the model is loaded
        run = (
            partial(scan_on_ray, load, address=ray, actors=actors or 2, gpus=gpus)
            if ray
            else partial(scan_metrics, load())
        )
        scores = run(
            datasets,
            names,
            rule=rule,  # pyright: ignore[reportArgumentType] checked by scan_metrics
            batch_size=16 if batch == "auto" else int(batch),
            out=out,
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
