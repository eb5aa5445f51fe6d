"""Data sets by name."""

from pathlib import Path

import pytest

from corelens.cli.options import samples as samples_of_command
from corelens.data import load
from tests.helpers.dataset_files import mlvu_row, videomme_row, write_json, write_table


def test_worlds_have_names_and_errors_for_unknown_names_list_the_known_ones():
    assert [sample.id for sample in load("charts", 2, seed=7)] == ["charts-7-0", "charts-7-1"]
    with pytest.raises(ValueError, match=r"'chart' is not a data set of corelens; these are refcocog, .*haystacks"):
        load("chart", 2)
    with pytest.raises(ValueError, match=r"charts: .*'depth'.*it takes .*seed"):
        load("charts", 2, depth=3)
    with pytest.raises(ValueError, match=r"'scenes' is not a data set .* are in corelens\.toy"):
        load("scenes", 2)


def test_every_reader_takes_options_as_part_of_the_question_or_not(tmp_path: Path):
    write_table(tmp_path / "videomme" / "test-0.parquet", [videomme_row()])
    (tmp_path / "fFjv93ACGo8.mp4").touch()
    (apart,), (within,) = (load("videomme", tmp_path, options_in_question=choice) for choice in (0, 1))
    assert apart.instruction.startswith("\nA. Apples.\nB. ")
    assert (within.question, within.instruction) == (apart.question + apart.instruction, "")
    with pytest.raises(ValueError, match="options_in_question='yes' is not known; it is one of 0, 1"):
        load("videomme", tmp_path, options_in_question="yes")
    with pytest.raises(ValueError, match=r"charts: .*options_in_question"):
        load("charts", 2, options_in_question=1)


def test_the_command_line_takes_options_as_part_of_the_question(tmp_path: Path):
    write_json(tmp_path / "json" / "2_needle.json", [mlvu_row()])
    (tmp_path / "video" / "2_needle").mkdir(parents=True)
    (tmp_path / "video" / "2_needle" / "needle_32.mp4").touch()
    data = [f"mlvu={tmp_path}", f"mlvu={tmp_path},options_in_question=1"]
    questions = {name: next(iter(read)).question for name, read in samples_of_command(data, 0, None).items()}
    assert list(questions) == ["MLVU needle", "MLVU needle, options in the question"]
    assert questions["MLVU needle"] == "What does the hand hold?"
    assert questions["MLVU needle, options in the question"].endswith("(D) A key\nOnly give the best option.")
