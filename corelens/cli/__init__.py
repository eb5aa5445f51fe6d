"""The command line.

Commands import what they need when they run, so that `--help` is quick.
"""

import warnings

import typer

from corelens.cli.ablate import ablate
from corelens.cli.accelerate import accelerate
from corelens.cli.check import check
from corelens.cli.compare import compare
from corelens.cli.demo import demo
from corelens.cli.explore import explore
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
}
"""Example of each command, with which its help ends."""


def example(command: str) -> str:
    """The end of a help text, whose lines are not wrapped."""
    return f"\b\nExample:\n  {command}"


app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"max_content_width": 100},
    epilog=example(EXAMPLES[demo]),
)


@app.callback()
def main() -> None:
    """See which attention heads of a multimodal LLM fetch the visual evidence, and test whether it matters."""
    # One line: where a warning is raised tells nothing to who types commands.
    warnings.formatwarning = lambda message, *_, **__: f"Warning: {message}\n"


for command, line in EXAMPLES.items():
    app.command(epilog=example(line))(command)
