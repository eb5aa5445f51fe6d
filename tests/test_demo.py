"""The demo, small, and the command line."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import corelens.demo
from corelens.cli import app
from corelens.demo import Demo, expectations, run_demo


@pytest.fixture(scope="module")
def small() -> Demo:
    return run_demo("corelens/toy", n_scanned=12, n_tested=12, n_texts=4)


def test_the_result_holds_every_number(small: Demo, tmp_path: Path):
    result = small.result
    assert json.loads(json.dumps(result)) == result
    assert set(result["accuracy"]) == {"scenes", "copy", "recall", "sum"}
    sets = {condition: len(heads) for condition, heads in result["heads"].items()}
    assert sets == {
        "nothing removed": 1,
        "top": 1,
        "next-ranked": 1,
        "random": 5,
        "random, same layers": 5,
        "bottom": 1,
        "top, last token": 1,
        "next-ranked, last token": 1,
        "random, same layers, last token": 5,
        "bottom, last token": 1,
    }
    for of_task in result["accuracy"].values():
        assert {condition: len(values) for condition, values in of_task.items()} == sets
        assert all(0 <= value <= 1 for values in of_task.values() for value in values)
    assert len(result["mean score"]) == len(result["mean score, last token"]) == 96
    assert result["heads"]["top"][0].split(", ") == list(result["mean score"])[:5]
    assert result["heads"]["top, last token"][0].split(", ") == list(result["mean score, last token"])[:5]
    assert result["about"].startswith("A model organism")
    assert small.rows[0][0] == "nothing removed"


def test_the_same_seeds_give_the_same_numbers(small: Demo):
    again = run_demo("corelens/toy", n_scanned=12, n_tested=12, n_texts=4).result
    assert {k: v for k, v in again.items() if k != "seconds"} == {
        k: v for k, v in small.result.items() if k != "seconds"
    }


def test_the_report_needs_no_network(small: Demo, tmp_path: Path):
    small.save(tmp_path / "out")
    html = (tmp_path / "out" / "report.html").read_text()
    assert json.loads((tmp_path / "out" / "demo.json").read_text()) == small.result
    assert "<script src" not in html
    assert "<link" not in html
    assert html.count("Plotly.newPlot(") == 6
    assert small.result["heads"]["top"][0] in html


@pytest.mark.parametrize(
    ("drops", "held"),
    [
        ((0.0, 0.9, 0.1, 0.1, 0.1, 0.1), [True] * 5),
        ((0.0, 0.3, 0.0, 0.0, 0.0, 0.0), [False, True, True, True, True]),
        ((0.0, 0.6, 0.3, 0.3, 0.3, 0.3), [True, False, False, False, False]),
    ],
)
def test_expectations_are_read_off_the_numbers(drops: tuple[float, ...], held: list[bool]):
    names = ["nothing removed", "top", "next-ranked", "random", "random, same layers"]
    scenes = {name: [1 - drop] for name, drop in zip(names, drops, strict=False)}
    text = {"nothing removed": [1.0], "top": [1 - drops[-1]]}
    accuracies = {"scenes": scenes, "copy": text, "recall": text, "sum": text}
    assert list(expectations(accuracies).values()) == held
    shared = ("nothing removed", "random")
    by_last_token = {
        task: {name if name in shared else f"{name}, last token": values for name, values in conditions.items()}
        for task, conditions in accuracies.items()
    }
    assert list(expectations(by_last_token, ", last token").values()) == held


def test_the_command_line(small: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(corelens.demo, "run_demo", lambda model: small)
    run = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "a")])
    assert run.exit_code == 0, run.output
    assert "Accuracy in percent" in run.output
    assert (tmp_path / "a" / "report.html").exists()
    run = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "b"), "--json"])
    assert json.loads(run.output) == small.result


def test_mistakes_on_the_command_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    run = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "file")])
    assert run.exit_code == 2
    assert "is a file" in " ".join(run.output.split())
    run = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "new"), "--model", str(tmp_path / "nowhere")])
    assert run.exit_code == 2
    assert "no model folder" in " ".join(run.output.split())
    assert not (tmp_path / "new").exists()
