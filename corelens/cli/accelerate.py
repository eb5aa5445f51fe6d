"""`corelens accelerate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from corelens.cli import options

if TYPE_CHECKING:
    pass


def accelerate(
    model: options.Model,
    data: options.Data,
    out: options.Out,
    scores: Annotated[Path, typer.Option(help="Scores that rank heads: a .safetensors of a scan.")],
    sink: Annotated[int, typer.Option(help="First tokens that all heads keep seeing.", min=0)] = 128,
    window: Annotated[int, typer.Option(help="Last tokens that all heads keep seeing.", min=1)] = 2048,
    text: Annotated[bool, typer.Option("--text", help="Whether all heads keep seeing the prompt's text.")] = False,
    budget: Annotated[
        list[float] | None,
        typer.Option(help="Share of heads that see everything; several for a curve. 5, 10, 25, 50 % if not given."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Where answers are cut off.", min=1)] = 32,
    limit: options.Limit = None,
    seed: options.Seed = 0,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Answer with the best heads seeing everything and the others little, and with other uses of the same budget."""
    ranking = options.ranking(scores)
    from corelens.accelerating import accelerate_all
    from corelens.parts import longest
    from corelens.sparse import Streaming
    from corelens.sparse.budgets import BUDGETS, plans_and_controls
    from corelens.sparse.speed import measure_speed

    with options.resumable(out):
        hooked = options.loaded(model, dtype, device)
        group_size = hooked.cfg.n_heads // hooked.cfg.n_key_value_heads
        plans = plans_and_controls(ranking, group_size, Streaming(sink, window, text), budget or BUDGETS)
        sets = {name: list(own) for name, own in options.samples(data, seed, limit).items()}
        found = accelerate_all(hooked, sets, plans, max_new_tokens=max_new_tokens, out=out)
        inputs = hooked.prepare(*longest(sets))
        speeds = measure_speed(hooked, inputs, {name: own[0] for name, own in found.conditions.items()})
    ...
