"""`corelens ablate`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from corelens.cli import options

if TYPE_CHECKING:
    from corelens.experiments.conditions import ConditionResults
    from corelens.heads import HeadSet
    from corelens.scores import HeadScores


def ablate(
    model: options.Model,
    data: options.Data,
    out: options.Out,
    heads: Annotated[str | None, typer.Option(help="The heads to remove, such as L2H4,L3H0.")] = None,
    scores: Annotated[
        Path | None, typer.Option(help="Or a .safetensors of a run, whose scores choose them and the controls.")
    ] = None,
    top: Annotated[
        float | None,
        typer.Option(help="With --scores: share of all heads; from 1 on, their number.", show_default="0.05", min=0),
    ] = None,
    how: options.How = "zero",
    phase: Annotated[Literal["prefill", "decode", "both"], typer.Option(help="When heads are removed.")] = "both",
    box_unit: options.BoxUnit = None,
    limit: options.Limit = None,
    seed: options.Seed = 0,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Answer questions with and without some heads. With --scores, also without as many others."""
    if (heads is None) == (scores is None):
        raise typer.BadParameter("give the heads themselves or what ranks them.", param_hint="--heads, --scores")
    if scores is None and top is not None:
        raise typer.BadParameter("it says how many heads of a ranking; give --scores.", param_hint="--top")
    from corelens.experiments.ablation import run_ablation
    from corelens.experiments.run_folder import atomic_write

    ranking = None if scores is None else options.ranking(scores, model)
    chosen_by = ranking and options.source(ranking)
    conditions = _conditions(heads, ranking, 0.05 if top is None else top)
    with options.resumable(out, "ablate"):
        sets = {name: list(own) for name, own in options.samples(data, seed, limit).items()}
        if ranking is not None:
            options.warn_of_shared(ranking, sets)
        found = run_ablation(
            options.loaded(model, dtype, device),
            {**sets, **options.texts(model, limit)},
            conditions,
            how,
            phase,
            box_unit=box_unit,
            chosen_by=chosen_by,
            out=out,
        )
    summary = {"model": model, "how": how, "phase": phase, "chosen by": chosen_by, **_summary(found)}
    text = json.dumps(summary, indent=1)
    atomic_write(out / "ablation.json", lambda path: path.write_text(text))
    if as_json:
        print(text)
        return
    _show(summary, out)


def _conditions(heads: str | None, ranking: "HeadScores | None", top: float) -> "dict[str, list[HeadSet]]":
    """The sets of heads that the options mean."""
    from corelens.heads import HeadSet

    try:
        if heads is not None:
            if not (chosen := HeadSet.parse(heads)):
                raise ValueError(f"{heads!r} names no head; write e.g. L2H4,L3H0.")
            return {"heads": [chosen]}
    except ValueError as cause:
        raise typer.BadParameter(str(cause), param_hint="--heads") from cause
    assert ranking is not None  # one of them is given
    try:
        return ranking.controls(int(top) if top >= 1 and top == int(top) else top)
    except ValueError as cause:
        raise typer.BadParameter(str(cause), param_hint="--top") from cause


def _summary(found: "ConditionResults[HeadSet]") -> dict[str, Any]:
    return {
        "heads": {name: [str(heads) for heads in sets] for name, sets in found.conditions.items()},
        "data": {
            dataset: {"samples": found.datasets.count(dataset), "conditions": found.summary(dataset)}
            for dataset in dict.fromkeys(found.datasets)
        },
        "skipped": found.skipped,
    }


def _show(summary: dict[str, Any], out: Path) -> None:
    console = Console(highlight=False, markup=False)
    for dataset, of in summary["data"].items():
        console.print(f"\n{dataset}: {of['samples']} samples, accuracy in percent")
        table = Table("removed", box=box.SIMPLE)
        for title in ("accuracy", "unreadable", "change, with 95 % interval", "p"):
            table.add_column(title, justify="right")
        for condition, said in of["conditions"].items():
            change = f"{100 * said['change']:+.1f}" if "change" in said else ""
            if "interval" in said:
                change += " [{:+.1f}, {:+.1f}]".format(*(100 * bound for bound in said["interval"]))
            table.add_row(
                condition, f"{100 * said['accuracy']:.1f}", f"{100 * said['unreadable']:.1f}", change,
                f"{said['p']:.4f}" if "p" in said else "",
            )  # fmt: skip
        console.print(table)
    for condition, sets in summary["heads"].items():
        if sets != [""]:
            console.print(f"{condition}: {sets[0] if len(sets) == 1 else f'{len(sets)} draws'}")
    if summary["skipped"]:
        console.print(f"{len(summary['skipped'])} samples were left out; ablation.json says why.")
    console.print(f"All numbers: {out / 'ablation.json'}\n")
