"""`corelens models`."""

import json
from dataclasses import asdict, astuple, fields
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from corelens.cli import options


def models(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME_OR_PATH", help="A folder, a Hub id, or a shipped model.")
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=100_000_000,
            metavar="POSITIONS",
            help="Also report what passes over so long a prompt would hold.",
        ),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Report how a model is supported, from its configuration alone. Without a name, list all model types."""
    from corelens.hf.support import CHECKS, TestedType, inspect_config, tested_types

    # Reasons contain brackets, which are not markup.
    console = Console(highlight=False, markup=False)
    if name is None:
        if context is not None:
            raise typer.BadParameter("give the model whose passes are meant.", param_hint="--context")
        model_types = tested_types()
        if as_json:
            print(json.dumps([asdict(model_type) for model_type in model_types], indent=1))
            return
        titles = (field.name.replace("_", " ") for field in fields(TestedType)[:-1])
        table = Table(*titles, box=box.SIMPLE_HEAD, padding=0)
        caveats = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
        for model_type in model_types:
            *cells, caveat = astuple(model_type)
            table.add_row(*cells)
            if caveat:
                caveats.add_row(f" {model_type.model_type}", caveat)
        console.print(table, caveats)
        console.print(f"\nattention: checks of the tests that passed, of {', '.join(CHECKS)}.")
        console.print("heads: anything unusual; hybrids have layers without heads. picture, video: visual tokens have")
        console.print(
            "boxes. tower: the attention of the vision tower can be hooked, or the kind of module that it is."
        )
        return
    if name in {model_type.model_type for model_type in tested_types()}:
        raise typer.BadParameter(
            f"{name} is a model type, listed without a name; give a folder, a Hub id or a shipped model.",
            param_hint="NAME_OR_PATH",
        )
    # Imported here, since the list of all types does not need TransformerLens, which takes seconds to import.
    from transformers import AutoConfig

    from corelens.hf.loading import checkpoint_folder

    try:
        config = AutoConfig.from_pretrained(checkpoint_folder(name), trust_remote_code=False)
        support = inspect_config(config)
    except (OSError, ValueError, TypeError, ImportError) as cause:
        # The first line is the error; advice of Hugging Face follows.
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise typer.BadParameter(f"{name}: {reason}", param_hint="NAME_OR_PATH") from cause
    sizes = {}
    if context is not None:
        # Imported here, since it imports TransformerLens.
        from corelens.experiments.pass_sizes import pass_sizes

        try:
            sizes = pass_sizes(config, context)
        except ValueError as cause:
            raise typer.BadParameter(str(cause), param_hint="--context") from cause
    if as_json:
        facts = {**asdict(support), "n_heads": support.n_heads, "gib_at_bfloat16": support.gib}
        print(json.dumps(facts | {"passes": {name: asdict(size) for name, size in sizes.items()}}, indent=1))
        return
    table = Table(box=None, show_header=False)
    for line in support.lines:
        table.add_row(*line)
    for name, size in sizes.items():
        largest = " x ".join(f"{length:,}" for length in size.largest)
        table.add_row(
            f"{name} of {context:,}",
            f"{size.peak_bytes / 2**30:.2f} GiB beside the weights, {size.peak_bytes / sizes['plain'].peak_bytes:.2f} "
            f"times the plain pass; largest tensor {largest}",
        )
    console.print(table)
