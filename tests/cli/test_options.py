"""`--help` of every command: it fits a screen, and its example does what it says."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from corelens.cli import app
from corelens.cli.options import text_samples
from corelens.data import score
from corelens.data.synthetic.text import plain_text

GROUP: Any = typer.main.get_command(app)


def help_of(*command: str) -> list[str]:
    run = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "100"}, terminal_width=100)
    assert run.exit_code == 0
    return run.output.rstrip().splitlines()


def example_of(*command: str) -> list[str]:
    """The words of the example at the end, as a shell reads them."""
    lines = help_of(*command)
    program, *words = shlex.split("\n".join(lines[lines.index("  Example:") + 1 :]).replace("\\\n", ""))
    assert program == "corelens"
    return words


@pytest.mark.parametrize("command", [[], *([name] for name in GROUP.commands)], ids=" ".join)
def test_help_fits_a_screen_and_names_every_option(command: list[str]):
    lines = help_of(*command)
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    assert not any(line.endswith("...") for line in lines[1:]), "a sentence of the list of commands was cut off"
    for option in GROUP.commands[command[0]].params if command else ():
        assert option.help, f"{option.name} is not explained"


@pytest.mark.parametrize("command", GROUP.commands)
def test_examples_are_understood(command: str):
    name, *arguments = example_of(command)
    assert name == command
    GROUP.commands[command].make_context(command, arguments)


def test_examples_run_and_leave_what_the_next_ones_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for command in ("models", "scan", "sweep", "ablate"):
        words = ["scenes=2" if word.startswith("scenes=") else word for word in example_of(command)]
        run = CliRunner().invoke(app, [*words, "--limit", "2"] if "--data" in words else words)
        assert run.exit_code == 0, run.output
    accelerate = example_of("accelerate")
    assert Path(accelerate[accelerate.index("--scores") + 1]).is_file()


def test_plain_questions_are_answered_by_their_answers_alone():
    questions = plain_text()
    assert len(questions) == len({sample.question for sample in questions}) == 20
    for sample in questions:
        assert score(sample, f"It is {sample.answer}.") == 1
        assert sum(score(sample, other.answer) or 0 for other in questions) == 1
        if sample.question.startswith("What is"):
            first, second = (int(word.rstrip("?")) for word in sample.question.split() if word.rstrip("?").isdecimal())
            assert int(sample.answer) == first + second
    assert list(text_samples("someone/a-model", None)) == ["text"]
