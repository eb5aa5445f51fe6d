"""`corelens ablate`."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from corelens.cli import options

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from corelens.data import BoxUnit, Sample
    from corelens.experiments.remote import AnyModel
    from corelens.heads import HeadSet
    from corelens.model import HookedMLLM
    from corelens.scores import HeadScores

N_ANSWERS = 4
"""Answers to each data set, with nothing ablated, that show what its rule accepts."""


def ablate(
    model: options.Model,
    data: options.Data,
    out: options.Out,
    heads: Annotated[str | None, typer.Option(metavar="HEADS", help="Heads to ablate, such as L2H4,L3H0.")] = None,
    scores: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Or a .safetensors of a run, whose scores choose them and the controls."),
    ] = None,
    top: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBERS", help="With --scores: numbers of heads, or shares such as 5%.", show_default="5,10,20,30"
        ),
    ] = None,
    how: options.AnswerHow = "zero",
    phase: Annotated[
        Literal["prefill", "decode", "both"], typer.Option(help="Phase in which heads are ablated.")
    ] = "both",
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
    """Answer questions with and without some heads. With --scores, also without control heads."""
    if (heads is None) == (scores is None):
        raise typer.BadParameter("give either heads or the scores that rank them.", param_hint="--heads, --scores")
    if scores is None and top is not None:
        raise typer.BadParameter("it is the number of top heads of a ranking; give --scores.", param_hint="--top")
    from corelens.experiments.ablation import run_ablation
    from corelens.experiments.ablation_summary import ablation_summary
    from corelens.experiments.remote import call
    from corelens.experiments.resumable import check_scoring, flatten_datasets
    from corelens.experiments.run_folder import write_summary

    ranking = None if scores is None else options.ranking(scores, model)
    chosen_by = ranking and options.source(ranking)
    conditions = _parsed_heads(heads) if heads is not None else _top_and_controls(ranking, top)
    with options.resumable(out, "ablate"):
        datasets = {name: list(samples) for name, samples in options.samples(data, seed, limit).items()}
        if ranking is not None:
            options.warn_of_shared(ranking, datasets)
        check_scoring(flatten_datasets(datasets), box_unit)
        everything = {**datasets, **{name: list(texts) for name, texts in options.text_samples(model, limit).items()}}
        with options.placed(model, dtype, device, ray, actors, gpus) as placed:
            write_norm = None if ranking is None else options.write_norm(placed, datasets)
            if write_norm is not None:
                n_draws = _n_draws(placed, everything, conditions, box_unit, out)
                conditions = _with_write_matched(conditions, write_norm, n_draws)
            results = run_ablation(
                placed,
                everything,
                conditions,
                how,
                phase,
                box_unit=box_unit,
                chosen_by=chosen_by,
                write_norm=write_norm,
                out=out,
            )
            answers = call(placed, partial(_first_answers, datasets=datasets, box_unit=box_unit))
    summary = {"model": model, "how": how, "phase": phase, "chosen by": chosen_by, **ablation_summary(results)}
    summary["answers"] = answers
    text = write_summary(out / "ablation.json", summary)
    if as_json:
        print(text)
        return
    _print_summary(summary, out)


def _first_answers(
    model: "HookedMLLM", datasets: "Mapping[str, Sequence[Sample]]", box_unit: "BoxUnit | None"
) -> dict[str, list[dict[str, Any]]]:
    """Answers with nothing ablated, by data set."""
    from corelens.study.data_check import scored_answers

    return {
        name: [asdict(answer) for answer in scored_answers(model, samples[:N_ANSWERS], box_unit)]
        for name, samples in datasets.items()
    }


def _parsed_heads(heads: str) -> "dict[str, list[HeadSet]]":
    """The condition that `--heads` names."""
    from corelens.heads import HeadSet

    try:
        if not (head_set := HeadSet.parse(heads)):
            raise ValueError(f"{heads!r} names no head; write e.g. L2H4,L3H0.")
    except ValueError as cause:
        raise typer.BadParameter(str(cause), param_hint="--heads") from cause
    return {"heads": [head_set]}


def _top_and_controls(ranking: "HeadScores | None", top: str | None) -> "dict[str, list[HeadSet]]":
    """The conditions that `--scores` and `--top` name; says which doses and controls are left out."""
    from corelens.experiments.ablation import PUBLISHED_DOSES, dose_conditions
    from corelens.experiments.ablation_summary import KINDS

    assert ranking is not None  # as --heads is not given
    published = [dose for dose in PUBLISHED_DOSES if 2 * dose <= ranking.n_heads]
    if top is None and len(published) < len(PUBLISHED_DOSES):
        typer.echo(
            f"Doses: {', '.join(map(str, published)) or 'none'} of the paper's {', '.join(map(str, PUBLISHED_DOSES))}: "
            f"of {ranking.n_heads} heads, as many others must be left as controls. --top chooses others.",
            err=True,
        )
    try:
        conditions = dose_conditions(ranking, published if top is None else options.doses(top, "--top"))
    except ValueError as cause:
        raise typer.BadParameter(str(cause), param_hint="--top") from cause
    doses = [condition.removeprefix("top ") for condition in conditions if condition.startswith("top ")]
    missing = {dose: [kind for kind in KINDS if f"{kind} {dose}" not in conditions] for dose in doses}
    if any(missing.values()):
        left_out = "; ".join(f"{kind} {dose}" for dose, kinds in missing.items() for kind in kinds)
        typer.echo(f"Left out: {left_out}. There are too few heads beside the top ones for these controls.", err=True)
    return conditions


def _n_draws(
    model: "AnyModel",
    samples: "Mapping[str, Sequence[Sample]]",
    conditions: "Mapping[str, Sequence[HeadSet]]",
    box_unit: "BoxUnit | None",
    out: Path,
) -> int:
    """Number of draws of write-matched heads: that with which `out` began, else as many as are cheap."""
    from corelens.experiments.conditions import MATCHED
    from corelens.experiments.remote import call
    from corelens.experiments.run_folder import MANIFEST, read_manifest
    from corelens.experiments.throughput import (
        MAX_DRAWS,
        N_TIMED_ANSWERS,
        affordable_draws,
        seconds_per_answer,
        timed_samples,
    )
    from corelens.progress import total_progress

    if (out / MANIFEST).is_file():
        earlier = read_manifest(out).get("conditions", {})
        return max((len(draws) for name, draws in earlier.items() if name.startswith(MATCHED)), default=1)
    timed = timed_samples(samples)
    with total_progress(N_TIMED_ANSWERS * sum(map(len, timed.values())), "timing a few samples", "pass") as bar:
        bar.begin("", N_TIMED_ANSWERS)
        seconds = call(model, partial(seconds_per_answer, samples=timed, box_unit=box_unit)) * sum(
            map(len, samples.values())
        )
    n_doses = sum(name.startswith("top ") for name in conditions)
    n_draws = affordable_draws(seconds * n_doses)
    typer.echo(f"{MATCHED} heads: {n_draws} draws, of at most {MAX_DRAWS}; one takes {seconds:.2g} seconds.", err=True)
    return n_draws


def _with_write_matched(
    conditions: "Mapping[str, Sequence[HeadSet]]", write_norm: "HeadScores", n_draws: int
) -> "Mapping[str, Sequence[HeadSet]]":
    """Add random heads that write as much as the top ones; names the doses that have none."""
    from corelens.experiments.conditions import MATCHED
    from corelens.experiments.controls import with_write_matched

    added = with_write_matched(conditions, write_norm, range(n_draws))
    doses = [name.removeprefix("top ") for name in conditions if name.startswith("top ")]
    if missing := [f"{MATCHED} {dose}" for dose in doses if f"{MATCHED} {dose}" not in added]:
        typer.echo(f"Left out: {'; '.join(missing)}. Too few heads beside the top ones write as much.", err=True)
    return added


def _print_summary(summary: dict[str, Any], out: Path) -> None:
    from corelens.experiments.conditions import low_to_high

    console = Console(highlight=False, markup=False)
    for dataset, results in summary["data"].items():
        console.print(f"\n{dataset}: {results['samples']} samples, accuracy in percent")
        table = Table("ablated", box=box.SIMPLE)
        for title in ("heads that write", "accuracy", "unreadable", "change, with 95 % interval", "p"):
            table.add_column(title, justify="right")
        for condition, result in results["conditions"].items():
            change = f"{100 * result['change']:+.1f}" if "change" in result else ""
            if "interval" in result:
                change += " [{:+.1f}, {:+.1f}]".format(*(100 * bound for bound in result["interval"]))
            table.add_row(
                condition,
                low_to_high(result.get("heads that write", [])),
                f"{100 * result['accuracy']:.1f}",
                f"{100 * result['unreadable']:.1f}",
                change,
                f"{result['p']:.4f}" if "p" in result else "",
            )
        console.print(table)
        for dose, (n_as_costly, n_draws) in results["write-matched draws as costly as top"].items():
            console.print(
                f"{n_as_costly} of {n_draws} draws of write-matched {dose} cost as much as top {dose}, or more."
            )
        for answer in summary["answers"].get(dataset, ())[:1]:
            accepted, score = " or ".join(map(repr, answer["accepted"])), answer["score"] or 0
            said = f"By the rule {answer['rule']!r}, {answer['answer']!r} counts {score:g}"
            console.print(f"{said} where {accepted} is right.", soft_wrap=True)
    for condition, draws in summary["heads"].items():
        if draws != [""]:
            console.print(f"{condition}: {draws[0] if len(draws) == 1 else f'{len(draws)} draws'}")
    options.print_skipped(console, summary["skipped"], "ablation.json")
    console.print(f"All numbers: {out / 'ablation.json'}\n")
