"""The command check: own data from the file to the report."""

import json
from pathlib import Path

import pytest

from corelens import HeadScores, toy
from tests.helpers.cli import invoke, invoke_on_toy, text_of
from tests.helpers.dataset_files import write_lines
from tests.helpers.reports import report_of, tables, titles
from tests.helpers.reports import text_of as text_of_page


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes in a file of one's own, with one row that is refused."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "pictures").mkdir()
    rows = []
    for scene in toy.scenes(12, seed=5):
        scene.pictures[0].save(folder / "pictures" / f"{scene.id}.png")
        row = {"question": scene.question, "answer": scene.answer, "image": f"pictures/{scene.id}.png"}
        rows.append(row | {"box": scene.evidence[0].box, "task": scene.about["task"]})
    defaults = {"defaults": {"box_format": "xyxy", "box_unit": "pixels"}}
    write_lines(folder / "questions.jsonl", [defaults, *rows, rows[0] | {"answr": "red"}])
    return folder / "questions.jsonl"


@pytest.mark.filterwarnings("ignore:1 of 13 rows of mine were skipped")
def test_own_data_go_from_the_file_to_the_report(questions: Path, tmp_path: Path):
    checked = invoke_on_toy("check", questions, "--out", tmp_path / "check")
    assert checked.exit_code == 0, checked.output
    assert "questions: 12 samples, 12 with evidence" in checked.output
    assert "refused: line 14: it has a field 'answr', which is not known: the nearest is 'answer'" in checked.output
    page = (tmp_path / "check" / "check.html").read_text()
    assert "What can be measured on questions" in text_of_page(page)
    assert any("visual tokens count as evidence" in title for title in titles(page))
    assert ["line 14", "it has a field 'answr', which is not known: the nearest is 'answer'"] in tables(page)[-1]

    data = ("--data", f"mine={questions}")
    assert invoke_on_toy("scan", *data, "--out", tmp_path / "scan").exit_code == 0
    scores = HeadScores.load(tmp_path / "scan" / "ram.safetensors")
    assert scores.datasets == ("mine",) * 12
    assert (tmp_path / "scan" / "ram.csv").read_text().splitlines()[1].startswith(f"{scores.ranked()[0]},")
    ablated = invoke_on_toy(
        "ablate", *data, "--scores", tmp_path / "scan" / "ram_last.safetensors", "--top", 5, "--limit", 6,
        "--out", tmp_path / "ablate",
    )  # fmt: skip
    assert ablated.exit_code == 0, ablated.output
    assert "mine: 6 samples" in ablated.output
    assert "By the rule 'phrase', '" in ablated.output
    for run, file in (("scan", "scan.html"), ("ablate", "ablation.html")):
        assert "mine" in text_of_page(report := report_of(tmp_path / run, file))
    assert ["sample", "question", "answer", "accepted", "rule", "right"] in [table[0] for table in tables(report)]


def test_the_check_prints_json(questions: Path, tmp_path: Path):
    result = invoke_on_toy("check", questions, "--out", tmp_path, "--limit", 4, "--json")
    check = json.loads(result.stdout)
    assert check["counts"]["samples"] == 4
    assert check["refused"] == [
        {"id": "line 14", "reason": "it has a field 'answr', which is not known: the nearest is 'answer'"}
    ]
    assert [answer["score"] for answer in check["answers"]] == [1.0] * 4
    assert {finding["verdict"] for finding in check["findings"]} <= {"yes", "in part", "no"}


def test_a_file_that_is_none_is_said_before_the_model_is_loaded(tmp_path: Path):
    result = invoke("check", tmp_path / "nowhere.jsonl", "--model", "nowhere")
    assert result.exit_code == 2
    assert "there is no file or folder" in text_of(result)
