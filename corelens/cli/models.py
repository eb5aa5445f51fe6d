"""`corelens models`."""

import json
from dataclasses import asdict, astuple, fields
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table


def models(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME_OR_PATH", help="A folder, a Hub id, or a shipped model.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, no table.")] = False,
) -> None:
    """Say what can be seen in a model, from its configuration alone. Without a name, list all model types."""
    from corelens.hf.support import CHECKS, TestedType, inspect_config, tested_types

    # Reasons hold brackets, which are no markup.
    console = Console(highlight=False, markup=False)
    if name is None:
        known = tested_types()
        if as_json:
            print(json.dumps([asdict(one) for one in known], indent=1))
            return
        titles = (field.name.replace("_", " ") for field in fields(TestedType)[:-1])
        table = Table(*titles, box=box.SIMPLE_HEAD, padding=0)
        caveats = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
        for one in known:
            *cells, caveat = astuple(one)
            table.add_row(*cells)
            if caveat:
                caveats.add_row(f" {one.model_type}", caveat)
        console.print(table, caveats)
        console.print(f"\nattention: checks of the tests that passed, of {', '.join(CHECKS)}.")
        console.print("heads: what is unusual; hybrids have layers without any. picture, video: whether visual tokens")
        console.print(
            "have rectangles. tower: whether the vision tower's attention can be hooked, or what it is instead."
        )
        return
    for one in tested_types():
        if one.model_type == name:
            raise typer.BadParameter(
                f"{name} is a model type, listed without a name; give a folder, a Hub id or a shipped model.",
                param_hint="NAME_OR_PATH",
            )
    # Here, since the list of all types does without TransformerLens, which takes seconds to import.
    from transformers import AutoConfig

    from corelens.hf.loading import checkpoint_folder

    try:
        found = inspect_config(AutoConfig.from_pretrained(checkpoint_folder(name), trust_remote_code=False))
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
