"""Data sets by name."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from corelens.cli.options import samples as samples_of_command
from corelens.data import (
    Samples,
    charts,
    documents,
    haystacks,
    load,
    mlvu,
    mmdocir,
    photographs,
    refcocog,
    videomme,
)
from tests.helpers.dataset_files import (
    mlvu_row,
    mmdocir_folder,
    mmdocir_question,
    refcocog_row,
    videomme_row,
    write_json,
    write_table,
)


def test_worlds_have_names_and_errors_for_unknown_names_list_the_known_ones():
    assert [sample.id for sample in load("charts", 2, seed=7)] == ["charts-7-0", "charts-7-1"]
    with pytest.raises(ValueError, match=r"'chart' is not a data set of corelens; these are refcocog, .*haystacks"):
        load("chart", 2)
    with pytest.raises(ValueError, match=r"charts: .*'depth'.*it takes .*seed"):
        load("charts", 2, depth=3)
    with pytest.raises(ValueError, match=r"'scenes' is not a data set .* are in corelens\.toy"):
        load("scenes", 2)


def mlvu_folder(folder: Path) -> Path:
    write_json(folder / "json" / "2_needle.json", [mlvu_row()])
    (folder / "video" / "2_needle").mkdir(parents=True)
    (folder / "video" / "2_needle" / "needle_32.mp4").touch()
    return folder


def videomme_folder(folder: Path) -> Path:
    write_table(folder / "videomme" / "test-0.parquet", [videomme_row()])
    (folder / "fFjv93ACGo8.mp4").touch()
    return folder


def refcocog_folder(folder: Path) -> Path:
    write_table(folder / "val-0.parquet", [refcocog_row()])
    return folder


DATASETS: dict[str, Callable[[Path], Samples]] = {
    "charts": lambda folder: charts(2),
    "documents": lambda folder: documents(2),
    "photographs": lambda folder: photographs(2),
    "haystacks": lambda folder: haystacks(1, lengths=(2,), depths=(0.0, 1.0)),
    "refcocog": lambda folder: refcocog(refcocog_folder(folder)),
    "mmdocir": lambda folder: mmdocir(mmdocir_folder(folder, [mmdocir_question()])),
    "mlvu": lambda folder: mlvu(mlvu_folder(folder), "needle"),
    "videomme": lambda folder: videomme(videomme_folder(folder)),
}


@pytest.mark.parametrize("name", DATASETS)
def test_data_sets_and_their_samples_travel_to_other_processes(name: str, tmp_path: Path):
    dataset = DATASETS[name](tmp_path)
    for read in (dataset, dataset.options_in_question()):
        arrived = pickle.loads(pickle.dumps(read))
        assert arrived.name == read.name
        for sample, other in zip(read, arrived, strict=True):
            assert (other.id, other.question, other.evidence) == (sample.id, sample.question, sample.evidence)
            sent = pickle.loads(pickle.dumps(sample))
            assert [one.tobytes() for one in sent.pictures] == [one.tobytes() for one in sample.pictures]
    assert len(list(dataset)) > 0
    assert pickle.loads(pickle.dumps(dataset.with_evidence())).name == dataset.name


def test_every_reader_takes_options_as_part_of_the_question_or_not(tmp_path: Path):
    videomme_folder(tmp_path)
    (apart,), (within,) = (load("videomme", tmp_path, options_in_question=choice) for choice in (0, 1))
    assert apart.instruction.startswith("\nA. Apples.\nB. ")
    assert (within.question, within.instruction) == (apart.question + apart.instruction, "")
    with pytest.raises(ValueError, match="options_in_question='yes' is not known; it is one of 0, 1"):
        load("videomme", tmp_path, options_in_question="yes")
    with pytest.raises(ValueError, match=r"charts: .*options_in_question"):
        load("charts", 2, options_in_question=1)


def test_the_command_line_takes_options_as_part_of_the_question(tmp_path: Path):
    mlvu_folder(tmp_path)
    data = [f"mlvu={tmp_path}", f"mlvu={tmp_path},options_in_question=1"]
    questions = {name: next(iter(read)).question for name, read in samples_of_command(data, 0, None).items()}
    assert list(questions) == ["MLVU needle", "MLVU needle, options in the question"]
    assert questions["MLVU needle"] == "What does the hand hold?"
    assert questions["MLVU needle, options in the question"].endswith("(D) A key\nOnly give the best option.")
