"""The demo, small, and the command line."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import corelens.demo
from corelens.cli import app
from corelens.demo import RANKED_BY, Demo, condition, expectations, run_demo

SCENE_TASKS = ("digit", "colour")
SIZES: dict[str, int] = dict(n_scanned=24, n_tested=24, n_texts=4, n_draws=3)


@pytest.fixture(scope="module")
def small() -> Demo:
    return run_demo("corelens/toy-worlds", **SIZES)


def test_the_result_holds_every_number(small: Demo):
    result = small.result
    assert json.loads(json.dumps(result)) == result
    assert list(result["accuracy"]) == ["digit", "colour", "copy", "recall", "sum"]
    draws = {"top": 1, "next-ranked": 1, "write-matched": 3}
    sets = {
        condition(kind, task, metric): n for metric in RANKED_BY for task in SCENE_TASKS for kind, n in draws.items()
    }
    assert {name: len(heads) for name, heads in result["heads"].items()} == sets
    assert result["no control"] == {}
    for questions, by_condition in result["accuracy"].items():
        tested = {
            name
            for name in sets
            if name.startswith("top")
            or (questions in SCENE_TASKS and name.startswith("next"))
            or name.startswith(f"write-matched, {questions}")
        }
        assert {*by_condition} == {"nothing ablated", *tested}
        assert all(len(by_condition[name]) == sets[name] for name in tested)
        assert all(0 <= value <= 1 for values in by_condition.values() for value in values)
    for metric in RANKED_BY:
        for task in SCENE_TASKS:
            ranked = list(result["mean score"][metric][task])
            assert len(ranked) == 96
            (top,), (next_ranked,), *_ = (result["heads"][condition(kind, task, metric)] for kind in draws)
            assert top.split(", ") == ranked[:10]
            assert next_ranked.split(", ") == ranked[10:20]
            for drawn in result["heads"][condition("write-matched", task, metric)]:
                assert not {*drawn.split(", ")} & {*ranked[:10]}
    assert small.rows[0][0] == "nothing ablated"


def test_the_same_seeds_give_the_same_numbers(small: Demo):
    again = run_demo("corelens/toy-worlds", **SIZES).result
    assert {k: v for k, v in again.items() if k != "seconds"} == {
        k: v for k, v in small.result.items() if k != "seconds"
    }


def test_the_report_needs_no_network(small: Demo, tmp_path: Path):
    small.save(tmp_path / "out")
    html = (tmp_path / "out" / "report.html").read_text()
    assert json.loads((tmp_path / "out" / "demo.json").read_text()) == small.result
    assert "<script src" not in html
    assert "<link" not in html
    assert html.count('<script type="application/json">') == 9
    assert "No control exists" not in html


def test_an_organism_whose_other_heads_write_nothing_has_no_controls():
    """77 of its 96 heads are closed: ablating those would prove nothing."""
    demo = run_demo("corelens/toy", **SIZES | {"n_draws": 1})
    assert {*demo.result["no control"]} == {
        condition("write-matched", task, metric) for metric in RANKED_BY for task in SCENE_TASKS
    }
    assert all("there is no control for 10 heads" in reason for reason in demo.result["no control"].values())
    assert demo.page.html().count("No control exists for") == 4
    for holds in demo.result["expected"].values():
        assert not holds["every draw of write-matched heads costs less"]


@pytest.mark.parametrize(
    ("own", "other", "next_ranked", "matched", "text", "held"),
    [
        (0.1, 1.0, 1.0, [0.9, 1.0], 1.0, [True, True, True, True, True]),
        (0.7, 1.0, 1.0, [0.9, 1.0], 1.0, [False, True, True, True, True]),
        (0.1, 0.5, 0.5, [0.9, 0.1], 0.5, [True, False, False, False, False]),
        (0.1, 1.0, 1.0, [], 1.0, [True, True, True, False, True]),
    ],
)
def test_expectations_are_read_off_the_numbers(
    own: float, other: float, next_ranked: float, matched: list[float], text: float, held: list[bool]
):
    top, following, draws = (condition(kind, "colour", "ram") for kind in ("top", "next-ranked", "write-matched"))
    accuracies = {
        "colour": {"nothing ablated": [1.0], top: [own], following: [next_ranked]}
        | ({draws: matched} if matched else {}),
        "digit": {"nothing ablated": [1.0], top: [other]},
        **{task: {"nothing ablated": [1.0], top: [text]} for task in ("copy", "recall", "sum")},
    }
    assert list(expectations(accuracies, "ram", "colour", SCENE_TASKS).values()) == held


def test_the_command_line(small: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(corelens.demo, "run_demo", lambda model: small)
    run = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "a")])
    assert run.exit_code == 0, run.output
    assert "Accuracy in percent" in run.output
    assert (tmp_path / "a" / "report.html").exists()
    run = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "b"), "--json"])
    assert json.loads(run.output) == small.result


def test_no_picture_is_not_as_many_as_usual():
    with pytest.raises(ValueError, match="n=0"):
        run_demo("corelens/toy-worlds-small", n_scanned=0)


def test_mistakes_on_the_command_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    run = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "file")])
    assert run.exit_code == 2
    assert "is a file" in " ".join(run.output.split())
    run = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "new"), "--model", str(tmp_path / "nowhere")])
    assert run.exit_code == 2
    assert "no model folder" in " ".join(run.output.split())
    assert not (tmp_path / "new").exists()
