"""The command line: `corelens demo`, `explore`, `models`, `scan`, `sweep`, `ablate`, `accelerate`, `study`,
`compare` and `report`.

Commands import what they need when they run, so that `--help` is quick.
"""

import typer

from corelens.cli.ablate import ablate
from corelens.cli.accelerate import accelerate
from corelens.cli.compare import compare
from corelens.cli.demo import demo
from corelens.cli.explore import explore
from corelens.cli.models import models
from corelens.cli.report import report
from corelens.cli.scan import scan
from corelens.cli.study import study
from corelens.cli.sweep import sweep

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)


@app.callback()
def main() -> None:
    """See which attention heads of a multimodal LLM fetch the visual evidence, and prove it."""


for command in (demo, explore, models, scan, sweep, ablate, accelerate, study, compare, report):
    app.command()(command)
