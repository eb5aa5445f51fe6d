"""Annotations in COCO's form: questions for presence, balanced, with boxes."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from corelens.data import load, score
from corelens.tokens import Box
from tests.helpers.dataset_files import read_with_skips, write_json


def annotation(number: int, image: int, category: int, bbox: list[Any], **changes: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": category, "bbox": bbox, "area": 4.0} | changes


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "val2017").mkdir()
    for number in range(3):
        Image.new("RGB", (200, 100)).save(tmp_path / "val2017" / f"{number}.jpg")
    names = ("dog", "apple", "cup")
    content = {
        "info": {},
        "images": [{"id": n, "file_name": f"{n}.jpg", "width": 200, "height": 100} for n in range(3)],
        "categories": [{"id": n, "name": name, "supercategory": "thing"} for n, name in enumerate(names)],
        "annotations": [
            annotation(10, 0, 0, [20, 10, 40, 30]),
            annotation(11, 0, 0, [0, 0, 10, 10]),
            annotation(12, 1, 1, [5, 5, 10, 10]),
            annotation(13, 1, 2, [0, 0, 200, 100], iscrowd=1),
            annotation(14, 2, 1, [5, 5, 10, 10]),
            annotation(15, 7, 1, [5, 5, 10, 10]),
            annotation(16, 2, 2, [5, 5, 900, 10]),
        ],
    }
    write_json(tmp_path / "instances.json", content)
    return tmp_path / "instances.json"


def test_every_category_in_a_picture_is_asked_for_and_as_many_that_are_not(file: Path):
    samples, skipped = read_with_skips(load("coco", file, images=file.parent / "val2017"))
    assert [(sample.id, sample.answer) for sample in samples] == [
        ("instances-0-0", "yes"), ("instances-0-1", "no"),
        ("instances-1-1", "yes"), ("instances-1-0", "no"),
        ("instances-2-1", "yes"), ("instances-2-0", "no"),
    ]  # fmt: skip
    first, absent, *_ = samples
    assert first.question == "Is there a dog in the picture?"
    assert absent.question == "Is there an apple in the picture?"
    assert [region.box for region in first.evidence] == [Box(20, 10, 60, 40), Box(0, 0, 10, 10)]
    assert absent.evidence == ()
    assert [score(sample, "Yes, there is.") for sample in samples[:2]] == [1, 0]
    assert samples[0].group == samples[1].group != samples[2].group
    assert list(skipped) == ["annotations[5]", "instances-2-2"]
    assert "picture 7 and category 1, which are not both listed" in skipped["annotations[5]"]
    assert "leaves the picture" in skipped["instances-2-2"]
