"""`corelens scan`."""

import json
from collections.abc import Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from corelens.data import Sample
    from corelens.model import HookedMLLM
    from corelens.scores import HeadScores


def scan(
    model: Annotated[str, typer.Option(help="A local folder, a Hub id, or a shipped model.")],
    data: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=WHERE",
            help="A data set and its folder or Hub id, as in refcocog=PATH; or a world and how many samples to draw, "
            "as in scenes=200. Can be given several times.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the scan; the same command goes on where it was interrupted.")],
    metric: Annotated[str, typer.Option(help="Measures, with commas between them.")] = "ram,write_ram",
    limit: Annotated[int | None, typer.Option(help="Most samples of each data set.", min=1)] = None,
    batch: Annotated[str, typer.Option(help="Most samples a pass; fewer when memory runs out.")] = "auto",
    rule: Annotated[str, typer.Option(help="How boxes become tokens: overlap, centre, cover or fraction.")] = "overlap",
    seed: Annotated[int, typer.Option(help="Of the worlds.")] = 0,
    dtype: Annotated[str, typer.Option(help="As bfloat16; auto is the checkpoint's own.")] = "auto",
    device: Annotated[str, typer.Option(help="As cuda:1; auto spreads the model over all GPUs.")] = "auto",
    ray: Annotated[
        str | None,
        typer.Option(help="Scan on a Ray cluster: auto for this machine's, local for a new one here, or HOST:PORT."),
    ] = None,
    actors: Annotated[
        int | None, typer.Option(help="Most models at a time, with --ray; 2 if not given.", min=1)
    ] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs of each model, with --ray; 1 if there are any.", min=0)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Score every head of a model on data that says where its evidence is."""
    if batch != "auto" and not (batch.isdecimal() and int(batch)):
        raise typer.BadParameter(f"{batch!r} is neither auto nor a number of samples.", param_hint="--batch")
    if ray is None and (actors is not None or gpus is not None):
        raise typer.BadParameter("they are about Ray's actors; give --ray too.", param_hint="--actors, --gpus")
    from corelens.cluster import scan_on_ray
    from corelens.scanning import scan_all

    sets = dict(_samples(one, seed, limit) for one in data)
    load = partial(_loaded, model, dtype, device)
    try:
        run = (
            partial(scan_on_ray, load, address=ray, actors=actors or 2, gpus=gpus) if ray else partial(scan_all, load())
        )
        found = run(
            sets,
            [name.strip() for name in metric.split(",")],
            rule=rule,  # pyright: ignore[reportArgumentType] checked by scan_all
            batch_size=16 if batch == "auto" else int(batch),
            out=out,
        )
    except (OSError, ValueError, RuntimeError, ImportError) as cause:
        raise typer.BadParameter(str(cause)) from cause
    except KeyboardInterrupt:
        typer.echo(f"\nInterrupted. The same command goes on where {out} ends.", err=True)
        raise typer.Exit(130) from None
    summaries = {name: _summary(scores) for name, scores in found.items()}
    if as_json:
        print(json.dumps(summaries, indent=1))
        return
    _show(summaries, next(iter(found.values())), out)


def _samples(argument: str, seed: int, limit: int | None) -> tuple[str, "Iterable[Sample]"]:
    """The samples that `NAME=WHERE` means, with their name."""
    from corelens.data import registry
    from corelens.toy import worlds

    name, separator, where = argument.partition("=")
    if not separator:
        raise typer.BadParameter(f"{argument!r} has no place; write NAME=WHERE.", param_hint="--data")
    try:
        if name == "scenes" or name in registry.WORLDS:
            draw: Any = worlds.scenes if name == "scenes" else registry.WORLDS[name]
            if not where.isdecimal():
                raise ValueError(f"{name} needs a number of samples, as in {name}=200, not {where!r}.")
            return name, islice(draw(int(where), seed), limit)
        samples = registry.load(name, where)
    except (OSError, ValueError, ImportError) as cause:
        raise typer.BadParameter(str(cause), param_hint="--data") from cause
    return samples.name, islice(samples, limit)


def _loaded(model: str, dtype: str, device: str) -> "HookedMLLM":
    """The model, on the device of the machine that loads it."""
    import torch

    from corelens.model import HookedMLLM

    placed: dict[str, Any] = {"device_map": device} if device != "auto" or torch.cuda.is_available() else {}
    return HookedMLLM.from_pretrained(model, dtype=dtype, **placed)


def _summary(scores: "HeadScores") -> dict[str, Any]:
    """What a scan found, in a few numbers."""
    from corelens import metrics

    top = scores.top()
    low, high = metrics.bootstrap_interval(scores.values)
    found: dict[str, Any] = {
        "samples": len(scores.samples),
        "heads": scores.n_heads,
        "top": [
            {
                "head": str(head),
                "score": round(float(scores.per_head[head]), 5),
                "interval": [round(float(bound[head]), 5) for bound in (low, high)],
            }
            for head in top
        ],
    }
    if len(scores.samples) > 1:
        stability = metrics.stability_curve(scores.values)
        found["split-half overlap"] = round(float(stability.mean[-1]), 3)
    if float(scores.per_head.nan_to_num().max()) > 0:
        found["rho_0.5"] = round(metrics.rho(scores.per_head), 4)
    return found


def _show(summaries: dict[str, Any], scores: "HeadScores", out: Path) -> None:
    console = Console(highlight=False, markup=False)
    console.print(f"\n{scores.model}: {len(scores.samples)} samples, {scores.n_heads} heads")
    table = Table("measure", "top 5 % of heads, with 95 % intervals of their means", box=box.SIMPLE)
    table.add_column("rho 0.5", justify="right")
    table.add_column("split-half overlap", justify="right")
    for name, found in summaries.items():
        top = [
            f"{one['head']} {one['score']:.3g} [{one['interval'][0]:.3g}, {one['interval'][1]:.3g}]"
            for one in found["top"]
        ]
        shown = [*top[:6], f"and {len(top) - 6} more"] if len(top) > 6 else top
        table.add_row(name, "\n".join(shown), str(found.get("rho_0.5", "")), str(found.get("split-half overlap", "")))
    console.print(table)
    for sample, why in list(scores.skipped.items())[:5]:
        console.print(f"left out: {sample}: {why}")
    if len(scores.skipped) > 5:
        console.print(f"and {len(scores.skipped) - 5} more, in .skipped of the scores")
    console.print(f"Scores: {', '.join(str(out / f'{name}.safetensors') for name in summaries)}\n")
