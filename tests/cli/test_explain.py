"""Explained errors, help in words, and the version."""

import re
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from corelens.cli import EXAMPLES, app
from corelens.cli.explain import error_sections
from tests.helpers.cli import invoke, text_of


@pytest.mark.parametrize("command", [command.__name__ for command in EXAMPLES])
def test_options_are_described_in_words(command: str):
    shown = invoke(command, "-h")
    assert shown.exit_code == 0
    assert shown.output == invoke(command, "--help").output
    assert not re.findall(r"--[a-z-]+ <[a-z \[\]]+>", shown.output)  # types of Python; `<mean|zero>` names choices


def test_the_version_is_that_of_the_package():
    assert CliRunner().invoke(app, ["--version"]).output == f"corelens {version('corelens')}\n"


def test_an_error_names_the_command_that_explains_it():
    ran = invoke("ablate", "--model", "corelens/toy", "--data", "scenes=1", "--heads", "L9H0", "--out", "never-made")
    (name,) = re.findall(r"\(corelens explain ([\w-]+)\)", text_of(ran))
    title, text = error_sections()[name]
    explained = invoke("explain", name)
    assert title in explained.output
    assert text.splitlines()[-1].split()[-1].strip("`.") in explained.output
    assert all(name in invoke("explain").output for name in error_sections())
    assert "'nothing' is not explained" in text_of(invoke("explain", "nothing"))
