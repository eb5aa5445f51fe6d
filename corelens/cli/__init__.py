"""The command line.

Commands import what they need when they run, so that `--help` is quick.
"""

import functools
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated

import typer

from corelens.cli.ablate import ablate
from corelens.cli.accelerate import accelerate
from corelens.cli.check import check
from corelens.cli.compare import compare
from corelens.cli.demo import demo
from corelens.cli.explain import explain
from corelens.cli.explore import explore
from corelens.cli.heads import heads
from corelens.cli.models import models
from corelens.cli.report import report
from corelens.cli.scan import scan
from corelens.cli.study import study
from corelens.cli.sweep import sweep

EXAMPLES = {
    demo: "corelens demo",
    explore: "corelens explore --model corelens/toy-natural --port 8000 --no-browser",
    models: "corelens models corelens/toy",
    check: "corelens check questions.jsonl --model corelens/toy",
    scan: "corelens scan --model corelens/toy --data scenes=100 --out runs/scan",
    sweep: "corelens sweep --model corelens/toy --data scenes=20 --out runs/sweep",
    ablate: "corelens ablate --model corelens/toy --data scenes=100 --heads L3H14,L3H0 --out runs/ablate",
    accelerate: "corelens accelerate --model corelens/toy --data scenes=20 --seed 1 \\\n"
    "    --scores runs/scan/ram.safetensors --sink 4 --window 8 --out runs/fast",
    study: "corelens study --model corelens/toy --data scenes=40 --quick --out runs/study",
    compare: "corelens compare runs/scan published.json",
    report: "corelens report runs/scan",
    heads: "corelens heads runs/scan runs/sweep runs/ablate --data scenes=100 --out pages",
    explain: "corelens explain other-run",
}
"""Example of each command, with which its help ends."""


def example(command: str) -> str:
    """The end of a help text, whose lines are not wrapped."""
    return f"\b\nExample:\n  {command}"


app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
    epilog=example(EXAMPLES[demo]),
)


def print_version(asked: bool) -> bool:
    """Print the version if asked for it, and end."""
    if asked:
        typer.echo(f"corelens {version('corelens')}")
        raise typer.Exit
    return asked


@app.callback()
def main(
    _: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=print_version)
    ] = False,
) -> None:
    """See which attention heads of a multimodal LLM fetch the visual evidence, and test whether it matters."""
    # One line: where a warning is raised tells nothing to who types commands.
    warnings.formatwarning = lambda message, *_, **__: f"Warning: {message}\n"


def announced(command: Callable[..., None]) -> Callable[..., None]:
    """Say at once, to who waits at a terminal, what takes the first seconds of a command."""

    @functools.wraps(command)
    def run(**arguments: object) -> None:
        if sys.stderr.isatty() and "torch" not in sys.modules:
            typer.echo("Loading PyTorch, which takes some seconds.", err=True)
        command(**arguments)

    return run


for command, line in EXAMPLES.items():
    app.command(epilog=example(line))(command if command is explain else announced(command))
