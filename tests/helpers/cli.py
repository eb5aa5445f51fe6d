"""Run commands of the command line in this process."""

import json
from typing import Any

from click.testing import Result
from typer.testing import CliRunner

from corelens.cli import app


def invoke(command: str, *arguments: object) -> Result:
    """Run a command with its arguments."""
    return CliRunner().invoke(app, [command, *map(str, arguments)])


def invoke_on_toy(command: str, *arguments: object) -> Result:
    """Run a command on `corelens/toy`."""
    return invoke(command, "--model", "corelens/toy", *arguments)


def json_of(command: str, *arguments: object) -> Any:
    """The JSON that a command prints of `corelens/toy`."""
    result = invoke_on_toy(command, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def text_of(result: Result) -> str:
    """Output in one line, without the frames of error messages."""
    return " ".join(result.output.replace("│", "").split())
