"""The reader of RefCOCOg, on tiny files of the published form with every kind of broken row."""

from pathlib import Path

import pytest
from PIL import Image

from corelens.data import refcocog, score
from corelens.inputs.media import ORIENTATION
from corelens.tokens import Box
from tests.helpers.dataset_files import read_with_skips, refcocog_row, write_table


def test_refcocog_has_one_sample_per_expression_and_its_box_is_left_top_width_height(tmp_path: Path):
    other = refcocog_row(question_id="18", answer=["a cat"], file_name="COCO_train2014_000000380440_52.jpg")
    write_table(tmp_path / "data" / "val-00000-of-00002.parquet", [refcocog_row()])
    write_table(tmp_path / "data" / "val-00001-of-00002.parquet", [other])
    samples = list(refcocog(tmp_path, "val"))
    assert [sample.id for sample in samples] == ["17-0", "17-1", "18-0"]
    assert [sample.question for sample in samples] == ["the red cup", "cup on the left", "a cat"]
    # Two objects of one picture: a file's name in RefCOCOg ends with the number of the object.
    assert [sample.group for sample in samples] == ["COCO_train2014_000000380440.jpg"] * 3
    assert samples[0].prompt[1].endswith("the region this sentence describes: the red cup")
    assert samples[0].evidence[0].box == Box(10, 20, 40, 60)
    assert samples[0].pictures[0].size == (100, 80)
    assert score(samples[0], "[10, 20, 40, 60]", box_unit="pixels") == 1
    assert score(samples[0], "[100, 250, 400, 750]", box_unit="thousandths") == 1
    assert score(samples[0], "somewhere", box_unit="pixels") is None
    with pytest.raises(ValueError, match="state the unit"):
        score(samples[0], "[10, 20, 40, 60]")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_boxes_of_refcocog_turn_with_pictures_that_are_stored_turned(tmp_path: Path, orientation: int, kind: str):
    bright, exif = Image.new("RGB", (100, 80)), Image.Exif()
    bright.paste("white", (10, 20, 40, 60))
    exif[ORIENTATION] = orientation
    bright.save(tmp_path / "turned", kind, exif=exif)
    picture = {"bytes": (tmp_path / "turned").read_bytes(), "path": None}
    write_table(tmp_path / "val-0.parquet", [refcocog_row(image=picture, answer=["the white one"])])
    (sample,) = refcocog(tmp_path)
    seen = sample.pictures[0]
    assert sample.about["size"] == seen.size
    assert sample.evidence[0].box == seen.getbbox()
    assert score(sample, sample.answer, box_unit="pixels") == 1


def test_refcocog_skips_what_is_broken(tmp_path: Path):
    rows = [
        refcocog_row(),
        refcocog_row(question_id="empty", answer=[]),
        refcocog_row(question_id="blank", answer=["  "]),
        refcocog_row(question_id="outside", bbox=[10.0, 20.0, 200.0, 40.0], answer=["a"]),
        refcocog_row(question_id="flat", bbox=[10.0, 20.0, 0.0, 40.0], answer=["a"]),
        refcocog_row(question_id="short", bbox=[10.0, 20.0], answer=["a"]),
        refcocog_row(question_id="missing", image={"bytes": None, "path": None}, answer=["a"]),
        refcocog_row(question_id="noise", image={"bytes": b"no picture", "path": None}, answer=["a"]),
    ]
    write_table(tmp_path / "test-0.parquet", rows)
    samples, skipped = read_with_skips(refcocog(tmp_path, "test"))
    assert [sample.id for sample in samples] == ["17-0", "17-1"]
    reasons = {
        "empty-0": "no referring expression",
        "blank-0": "no referring expression",
        "outside-0": "leaves the picture, which is 100 x 80 pixels",
        "flat-0": "is empty",
        "short-0": "'bbox' is [10.0, 20.0]: List should have at least 4 items",
        "missing-0": "holds no picture",
        "noise-0": "that Pillow can read",
    }
    assert skipped.keys() == reasons.keys()
    for row, reason in reasons.items():
        assert reason in skipped[row]
