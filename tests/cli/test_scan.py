"""The command scan: its output, that it resumes, and its errors."""

import json
from pathlib import Path

import pytest

from corelens import HeadScores
from corelens.cli import options
from corelens.experiments.run_folder import write_summary
from tests.helpers.cli import invoke_on_toy, text_of


def test_the_command_scores_several_data_sets_and_goes_on(tmp_path: Path):
    command = ("--data", "scenes=6", "--data", "charts=3", "--metric", "ram, visual_share", "--out", tmp_path / "run")
    first = invoke_on_toy("scan", *command, "--limit", 4, "--json")
    assert first.exit_code == 0, first.output
    summaries = json.loads(first.stdout)
    assert list(summaries) == ["ram", "visual_share"]
    assert (summaries["ram"]["samples"], summaries["ram"]["heads"], len(summaries["ram"]["top"])) == (7, 96, 5)
    scores = HeadScores.load(tmp_path / "run" / "ram.safetensors")
    assert scores.datasets == ("scenes",) * 4 + ("charts",) * 3
    best = summaries["ram"]["top"][0]
    assert best["head"] == str(scores.ranked()[0])
    assert best["interval"][0] <= best["score"] <= best["interval"][1]
    again = invoke_on_toy("scan", *command, "--limit", 4)
    assert "rho 0.5: the smallest share of heads that holds half of the score." in again.stdout
    assert again.exit_code == 0, again.output
    assert "7 samples, 96 heads" in again.stdout
    assert best["head"] in again.stdout
    assert str(tmp_path / "run" / "ram.safetensors") in again.stdout.replace("\n", "")


@pytest.mark.parametrize(
    ("metric", "message"),
    [("rams", "there is no metric 'rams'; there are ram, "), ("ram", "holds a run of corelens sweep, not of scan")],
)
def test_what_is_wrong_is_said_before_the_model_is_loaded(
    metric: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def loaded(*_: str) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(options, "loaded", loaded)
    if metric == "ram":
        write_summary(tmp_path / "manifest.json", {"work": "sweep"})
    result = invoke_on_toy("scan", "--data", "scenes=2", "--metric", metric, "--out", tmp_path)
    assert result.exit_code == 2
    assert message in text_of(result)


@pytest.mark.parametrize("manifest", ["[]", "no JSON", "{}"])
def test_a_folder_whose_manifest_is_of_something_else_is_refused_by_name(manifest: str, tmp_path: Path):
    (tmp_path / "manifest.json").write_text(manifest)
    result = invoke_on_toy("scan", "--data", "scenes=2", "--out", tmp_path)
    assert result.exit_code == 2
    assert "holds no run of corelens" in text_of(result)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "scenes"), "has no place; write NAME=WHERE, as in scenes=200"),
        (("--data", "scenes=many"), "needs a number of samples up to 1,000,000, as in scenes=200"),
        (("--data", "scenes=0"), "scenes=0: scenes needs a number of samples up to"),
        (("--data", "scenes=" + "9" * 20), "scenes needs a number of samples up to 1,000,000"),
        (("--data", "scenes=2,toy-page=2"), "'toy-page' is no data set that corelens knows"),
        (("--data", "scenes=2,charts=2,colour=red"), "'colour' is no data set that corelens knows"),
        (("--data", "scenes=2", "--seed", "-1"), "'--seed': Input should be greater than or equal to 0"),
        (("--data", "cocoa=here"), "is no data set that corelens knows"),
        (("--data", "mine=nowhere.jsonl"), "Nor is there a file or folder 'nowhere.jsonl' of your own"),
        (("--data", "mine=."), "holds no metadata.jsonl and no metadata.parquet"),
        (("--data", "mine=pyproject.toml"), "pyproject.toml ends in '.toml': data of your own are .jsonl, .parquet"),
        (("--data", "scenes=mine.jsonl"), "as in scenes=200; data of your own need another"),
        (("--data", "refcocog=./nowhere"), "there is no folder"),
        (("--data", "scenes=2", "--metric", "rham"), "there is no metric 'rham'; there are ram, "),
        (("--data", "refcocog=.,split"), "after the place come settings, as in refcocog=PATH,split=test"),
        (("--data", "mmlongbench=.,task=none"), "task='none' is not known"),
        (("--data", "scenes=2", "--rule", "nearest"), "'nearest' is not one of 'overlap'"),
        (("--data", "scenes=2", "--batch", "0"), "is neither auto nor a number"),
    ],
)
def test_mistakes_in_the_command_are_named(arguments: tuple[str, ...], message: str, tmp_path: Path):
    result = invoke_on_toy("scan", *arguments, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert message in text_of(result)
    assert not (tmp_path / "run").exists()
