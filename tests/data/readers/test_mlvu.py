"""The reader of MLVU, on tiny files of the published form with every kind of broken row."""

from pathlib import Path

import pytest

from corelens.data import load, mlvu, score
from tests.helpers.dataset_files import mlvu_row, read_with_skips, write_json


def test_mlvu_lists_the_options_and_videos_are_paths(tmp_path: Path):
    write_json(tmp_path / "MLVU" / "json" / "2_needle.json", [mlvu_row()])
    write_json(tmp_path / "MLVU" / "json" / "9_summary.json", [mlvu_row(candidates=None, answer="A long day.")])
    for folder in ("2_needle", "9_summary"):
        (tmp_path / "MLVU" / "video" / folder).mkdir(parents=True)
        (tmp_path / "MLVU" / "video" / folder / "needle_32.mp4").touch()
    (sample,) = load("mlvu", tmp_path)
    assert "(B) A pen\n(C) A fish" in sample.question
    assert Path(sample.videos[0]).name == "needle_32.mp4"
    assert (score(sample, "(B)"), score(sample, "B. A pen"), score(sample, "a key"), score(sample, "?")) == (
        1,
        1,
        0,
        None,
    )
    (summary,) = mlvu(tmp_path, "summary")
    assert (summary.choices, summary.scoring) == ((), "judge")


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
    with pytest.raises(ValueError, match="task='findNeedle' is not known; it is one of plotQA, needle"):
        mlvu(tmp_path, "findNeedle")
    with pytest.raises(FileNotFoundError, match=r"holds no json/\*_ego\.json"):
        mlvu(tmp_path, "ego")
