"""The reader of VideoMME, on tiny files of the published form with every kind of broken row."""

import zipfile
from pathlib import Path

import huggingface_hub
import pytest

from corelens.data import load, score, tally_by, videomme
from corelens.data.readers.videomme import TASKS
from tests.helpers.dataset_files import message_text, read_with_skips, videomme_row, write_table

TABLE = Path("videomme", "test-00000-of-00001.parquet")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "fFjv93ACGo8.mp4").touch()
    return tmp_path


def test_videomme_lists_the_options_and_the_answer_is_a_letter(folder: Path):
    (folder / "data" / "N1cdUjctpG8.MKV").touch()
    write_table(folder / TABLE, [videomme_row(), videomme_row(question_id="002-1", videoID="N1cdUjctpG8")])
    sample, other = load("videomme", folder)
    assert sample.id == "001-1"
    assert (sample.group, other.group) == ("fFjv93ACGo8", "N1cdUjctpG8")
    assert sample.question == "Which of these decorations is the most numerous?"
    assert message_text(sample) == (
        "Which of these decorations is the most numerous?\nA. Apples.\nB. Candles.\nC. Berries.\n"
        "D. All are equally many.\nAnswer with the option's letter."
    )
    assert [Path(video).name for video in (*sample.videos, *other.videos)] == ["fFjv93ACGo8.mp4", "N1cdUjctpG8.MKV"]
    right = [score(sample, answer) for answer in ("C", "(C)", "C. Berries.", "The answer is C.", "B", "Apples")]
    assert right == [1, 1, 1, 1, 0, None]
    assert sample.about["domain"] == "Knowledge"
    assert sample.evidence == ()


def test_videomme_has_twelve_categories_that_are_tallied_apart(folder: Path):
    rows = [videomme_row(question_id=str(index), task_type=task) for index, task in enumerate([*TASKS, TASKS[3]])]
    write_table(folder / TABLE, rows)
    samples = list(videomme(folder))
    tallies = tally_by("task", samples, [score(sample, "C" if sample.id in ("3", "5") else "A") for sample in samples])
    assert len(tallies) == 12
    assert {task for task, one in tallies.items() if one.mean} == {"Action Recognition", "OCR Problems"}
    assert (tallies["Action Recognition"].mean, tallies["Action Recognition"].n) == (0.5, 2)


def test_videomme_of_the_hub_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_table(tmp_path / "downloaded" / TABLE, [videomme_row()])
    with zipfile.ZipFile(tmp_path / "downloaded" / "videos_chunked_01.zip", "w") as archive:
        archive.writestr("data/fFjv93ACGo8.mp4", "video")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: str(tmp_path / "downloaded"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path / "home"))
    (sample,) = videomme()
    assert Path(sample.videos[0]) == tmp_path / "home" / "corelens" / "Video-MME" / "data" / "fFjv93ACGo8.mp4"
    monkeypatch.setattr(zipfile, "ZipFile", None)  # not a second time
    assert len(list(videomme())) == 1


def test_videomme_skips_what_is_broken(folder: Path):
    changes = [
        {},
        {"options": []},
        {"options": None},
        {"options": ["Apples.", "Candles."]},
        {"options": ["B. Apples.", "A. Candles."]},
        {"answer": "E"},
        {"answer": "Berries"},
        {"task_type": "Counting"},
        {"duration": "11"},
        {"videoID": "absent"},
        {"question": " "},
    ]
    rows = [videomme_row(question_id=str(index), **change) for index, change in enumerate(changes)]
    write_table(folder / TABLE, rows)
    samples, skipped = read_with_skips(videomme(folder))
    assert [sample.id for sample in samples] == ["0"]
    reasons = [
        "it has no options, and its answer is the letter of one", "it has no options", "do not begin with A., B.",
        "do not begin with A., B.", "answer 'E' is the letter of none", "answer 'Berries' is the letter of none",
        "'Counting', which is none of Temporal Perception", "'11', which is none of short, medium, long",
        "there is no video file absent.mp4", "'question' is ' '",
    ]  # fmt: skip
    for message, reason in zip(skipped.values(), reasons, strict=True):
        assert reason in message


def test_a_folder_without_videos_says_what_to_unpack(tmp_path: Path):
    write_table(tmp_path / TABLE, [videomme_row()])
    with pytest.raises(FileNotFoundError, match=r"holds no video; unpack every videos_chunked_\*\.zip"):
        videomme(tmp_path)
