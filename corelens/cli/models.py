"""`corelens models`."""

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table


def models(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME_OR_PATH]", help="A local folder, a Hub id, or a shipped model.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Say what can be seen in a model, from its configuration alone; without a name, list all model types."""
    from corelens.inspection import inspect_config, known_types

    # Reasons hold brackets, which are no markup.
    console = Console(highlight=False, markup=False)
    if name is None:
        known = known_types()
        if as_json:
            print(json.dumps([asdict(one) for one in known], indent=1))
            return
        table = Table("model type", "picture geometry", "video geometry", "caveat", box=box.SIMPLE)
        for one in known:
            table.add_row(one.model_type, one.picture, one.video, one.caveat)
        console.print(table)
        return
    # Here, since the list of all types does without TransformerLens, which takes seconds to import.
    from transformers import AutoConfig

    from corelens.model import located

    try:
        found = inspect_config(AutoConfig.from_pretrained(located(name), trust_remote_code=False))
    except (OSError, ValueError, TypeError, ImportError) as cause:
        # The first line says what is wrong; Hugging Face goes on with advice.
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise typer.BadParameter(f"{name}: {reason}", param_hint="NAME_OR_PATH") from cause
    if as_json:
        print(json.dumps({**asdict(found), "n_heads": found.n_heads, "gib_at_bfloat16": found.gib}, indent=1))
        return
    table = Table(box=None, show_header=False)
    for line in found.lines:
        table.add_row(*line)
    console.print(table)
