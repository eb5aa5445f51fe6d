"""The reader of MLVU, on tiny files of the published form with every kind of broken row."""

from pathlib import Path
from statistics import fmean

import pytest

from corelens.data import load, mlvu, score, tally, tally_by
from tests.helpers.dataset_files import message_text, mlvu_row, read_with_skips, write_json


def test_mlvu_lists_the_options_and_videos_are_paths(tmp_path: Path):
    write_json(tmp_path / "MLVU" / "json" / "2_needle.json", [mlvu_row()])
    write_json(tmp_path / "MLVU" / "json" / "9_summary.json", [mlvu_row(candidates=None, answer="A long day.")])
    for folder in ("2_needle", "9_summary"):
        (tmp_path / "MLVU" / "video" / folder).mkdir(parents=True)
        (tmp_path / "MLVU" / "video" / folder / "needle_32.mp4").touch()
    (sample,) = load("mlvu", tmp_path)
    assert sample.question == "What does the hand hold?"
    assert message_text(sample) == (
        "What does the hand hold?\nOptions:\n(A) A cup\n(B) A pen\n(C) A fish\n(D) A key\nOnly give the best option."
    )
    assert Path(sample.videos[0]).name == "needle_32.mp4"
    assert sample.group == "needle_32"
    assert (score(sample, "(B)"), score(sample, "B. A pen"), score(sample, "a key"), score(sample, "?")) == (
        1,
        1,
        0,
        None,
    )
    (summary,) = mlvu(tmp_path, "summary")
    assert (summary.choices, summary.scoring, summary.instruction) == ((), "judge", "")


def test_the_six_tasks_of_the_paper_are_one_data_set_whose_mean_is_over_tasks(tmp_path: Path):
    names = ("1_plotQA", "2_needle", "3_ego", "4_count", "5_order", "6_anomaly_reco", "7_topic_reasoning")
    for name in names:
        write_json(tmp_path / "json" / f"{name}.json", [mlvu_row()] * (3 if name == "2_needle" else 1))
        (tmp_path / "video" / name).mkdir(parents=True)
        (tmp_path / "video" / name / "needle_32.mp4").touch()
    samples = list(load("mlvu", tmp_path, task="published"))
    tasks = ["topic_reasoning", "needle", "ego", "plotQA", "order", "count", "needle", "needle"]
    assert [sample.about["task"] for sample in samples] == tasks
    assert len({sample.id for sample in samples}) == len(samples)
    # Right on all of the needles, and on nothing else: three of eight questions, one of six tasks.
    scores = [score(sample, "(B)" if sample.about["task"] == "needle" else "(A)") for sample in samples]
    assert tally(scores).mean == pytest.approx(3 / 8)
    by_task = tally_by("task", samples, scores)
    assert list(by_task) == ["topic_reasoning", "needle", "ego", "plotQA", "order", "count"]
    assert fmean(one.mean for one in by_task.values()) == pytest.approx(1 / 6)
    (tmp_path / "json" / "5_order.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no json/\*_order\.json"):
        mlvu(tmp_path, "published")


def test_mlvu_skips_what_is_broken(tmp_path: Path):
    rows = [mlvu_row(), mlvu_row(video="absent.mp4"), mlvu_row(answer="A dog"), mlvu_row(question=" ")]
    write_json(tmp_path / "json" / "2_needle.json", [*rows, {"video": "needle_32.mp4"}])
    (tmp_path / "video" / "2_needle").mkdir(parents=True)
    (tmp_path / "video" / "2_needle" / "needle_32.mp4").touch()
    samples, skipped = read_with_skips(mlvu(tmp_path))
    assert len(samples) == 1
    reasons = [
        "absent.mp4' does not exist",
        "'A dog' is none of its candidates",
        "String should have at least 1 character",
        "no field 'question'",
    ]
    for message, reason in zip(skipped.values(), reasons, strict=True):
        assert reason in message
    with pytest.raises(ValueError, match="task='findNeedle' is not known; it is one of published, plotQA, needle"):
        mlvu(tmp_path, "findNeedle")
    with pytest.raises(FileNotFoundError, match=r"holds no json/\*_ego\.json"):
        mlvu(tmp_path, "ego")
