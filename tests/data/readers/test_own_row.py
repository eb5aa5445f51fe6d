"""Rows of one's own: what they become, and what refuses them."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from corelens.data import Evidence, Sample, score
from corelens.data.readers.base import BadRow
from corelens.data.readers.own_row import ROW_FIELDS, plural_fields, row_sample, validated_row
from corelens.tokens import Box
from tests.helpers import verified

SIZE = (200, 100)
PLAIN = {"question": "What colour is the cup?", "answer": "red", "image": "a.png"}
IN_PIXELS = {"box_format": "xyxy", "box_unit": "pixels"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for name in ("a.png", "b.png"):
        Image.new("RGB", SIZE).save(folder / name)
    (folder / "a.mp4").touch()
    (folder / "broken.png").write_text("no picture")
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", SIZE).save(folder / "turned.jpg", exif=exif)
    return folder


def sample_of(folder: Path, fields: dict[str, Any]) -> Sample:
    return row_sample(validated_row(plural_fields(fields)), "1", folder)


BOXES: list[tuple[dict[str, Any], list[tuple[int, Box]]]] = [
    ({"box": [20, 10, 60, 40], **IN_PIXELS}, [(0, Box(20, 10, 60, 40))]),
    ({"box": [20, 10, 40, 30], "box_format": "xywh", "box_unit": "pixels"}, [(0, Box(20, 10, 60, 40))]),
    ({"box": [0.1, 0.1, 0.2, 0.3], "box_format": "xywh", "box_unit": "fractions"}, [(0, Box(20, 10, 60, 40))]),
    ({"box": [100, 100, 300, 400], "box_format": "xyxy", "box_unit": "thousandths"}, [(0, Box(20, 10, 60, 40))]),
    ({"boxes": [[0, 0, 9, 9], [5, 5, 8, 8]], **IN_PIXELS}, [(0, Box(0, 0, 9, 9)), (0, Box(5, 5, 8, 8))]),
    (
        {"image": None, "images": ["b.png", "a.png"], "box": [0, 0, 9, 9], "evidence_images": [1], **IN_PIXELS},
        [(1, Box(0, 0, 9, 9))],
    ),
    # In pixels as they are stored, of a picture that is seen turned by a quarter.
    ({"image": "turned.jpg", "box": [0, 0, 200, 50], **IN_PIXELS}, [(0, Box(50, 0, 100, 200))]),
]
"""Fields of evidence, and the picture and box of each region."""


@pytest.mark.parametrize(("fields", "regions"), BOXES)
def test_boxes_are_in_the_format_and_unit_that_the_row_says(
    fields: dict[str, Any], regions: list[tuple[int, Box]], folder: Path
):
    sample = sample_of(folder, PLAIN | fields)
    for region, (media, box) in zip(sample.evidence, regions, strict=True):
        assert region.media == media
        assert region.box == pytest.approx(box)


ACCEPTED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"question": "What colour is the cup?", "answers": ("red",), "scoring": "phrase", "instruction": ""}),
    ({"answer": 7}, {"answers": ("7",)}),
    ({"answer": None, "answers": ["red", "crimson"]}, {"answers": ("red", "crimson")}),
    ({"instruction": "One word."}, {"instruction": "\nOne word."}),
    ({"file_name": "b.png", "image": None}, {"answers": ("red",)}),
    (
        {"choices": ["red", "blue"]},
        {
            "scoring": "choice",
            "choices": ("red", "blue"),
            "instruction": "\nOptions:\n(A) red\n(B) blue\nOnly give the best option.",
        },
    ),
    (
        {"answer": None, "scoring": "box", "box": [20, 10, 60, 40], **IN_PIXELS},
        {"answer": "[20, 10, 60, 40]", "scoring": "box"},
    ),
    ({"group": "report", "task": "colour", "about": {"year": 2020}}, {"group": "report"}),
    ({"image": None, "images": ["a.png", "b.png"], "evidence_images": [1]}, {}),
    ({"image": None}, {"images": (), "group": "1"}),
    (
        {"image": None, "video": "a.mp4", "seconds": [2, 4.5]},
        {"images": (), "evidence": (Evidence(seconds=(2, 4.5)),)},
    ),
    (
        {"image": None, "video": "a.mp4", "spans": [[0, 1], [2, 3]]},
        {"evidence": (Evidence(seconds=(0, 1)), Evidence(seconds=(2, 3)))},
    ),
]
"""Fields, and what the sample has of them."""


@pytest.mark.parametrize(("fields", "expected"), ACCEPTED)
def test_fields_become_those_of_samples(fields: dict[str, Any], expected: dict[str, Any], folder: Path):
    sample = sample_of(folder, PLAIN | fields)
    assert {name: getattr(sample, name) for name in expected} == expected


def test_tasks_and_annotations_are_about_the_sample_and_a_picture_is_a_group(folder: Path):
    sample = sample_of(folder, PLAIN | {"task": "colour", "about": {"year": 2020}})
    assert sample.about == {"task": "colour", "year": 2020, "group": str(folder / "a.png")}
    assert score(sample, "It is red.") == 1
    clip = sample_of(folder, PLAIN | {"image": None, "video": "a.mp4"})
    assert (clip.videos, clip.group) == ((str(folder / "a.mp4"),), str(folder / "a.mp4"))
    whole = sample_of(folder, PLAIN | {"evidence_images": [0]})
    assert [(region.box, region.media) for region in whole.evidence] == [(None, 0)]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"qestion": "Where?"}, "it has a field 'qestion', which is not known: the nearest is 'question'"),
    ({"xyz_": 1}, "it has a field 'xyz_', which is not known: there are question, images"),
    ({"question": None}, "it has no field 'question'"),
    (
        {"question": None, "bbox": 3},
        "it has no field 'question'; it has a field 'bbox', which is not known: the nearest",
    ),
    ({"question": "  "}, "its 'question' has '  ': String should have at least 1 character"),
    ({"answer": None}, "it has no field 'answer'"),
    ({"answers": ["red"]}, "it has both 'answer' and 'answers'"),
    ({"answer": None, "answers": "red"}, "a valid list (of one, the field is 'answer')"),
    ({"image": "c.png"}, "its picture '/pictures/c.png' does not exist"),
    ({"image": "https://example.org/a.png"}, "is an address, and nothing is fetched"),
    ({"image": "broken.png", "box": [0, 0, 9, 9], **IN_PIXELS}, "its picture cannot be read"),
    ({"box": [0, 0, 9, 9]}, "neither it nor the defaults in the first line say their 'box_format'"),
    ({"box": [0, 0, 9, 9], "box_format": "xyxy"}, "say their 'box_unit'"),
    (
        {"box": [0, 0, 9, 9], **IN_PIXELS, "box_format": "yxyx"},
        "its 'box_format' has 'yxyx': Input should be 'xyxy'",
    ),
    ({"box": [0, 0, 9], **IN_PIXELS}, "its 'boxes' has [0, 0, 9]: List should have at least 4 items"),
    ({"box": [0, 0, "9", 9], **IN_PIXELS}, "its 'boxes' has '9'"),
    (
        {"boxes": [0, 0, 9, 9], **IN_PIXELS},
        "has 0: Input should be a valid list (of one, the field is 'box')",
    ),
    ({"box": [0, 0, 300, 9], **IN_PIXELS}, "leaves the picture, which is 200 x 100 pixels"),
    ({"box": [9, 0, 9, 9], **IN_PIXELS}, "is empty"),
    ({"box": [0, 0, 9, 9], **IN_PIXELS, "evidence_images": [1]}, "name picture 1, and it has 1, counted from zero"),
    (
        {"image": None, "images": ["a.png", "b.png"], "box": [0, 0, 9, 9], **IN_PIXELS},
        "it has 1 boxes, 2 pictures and 0 'evidence_images': name the picture of each box",
    ),
    ({"image": None, "video": "b.mp4"}, "its video '/pictures/b.mp4' does not exist"),
    ({"video": "a.mp4"}, "so that it has no pictures and no boxes: a cl.Sample in Python takes them together"),
    ({"image": None, "video": "a.mp4", "seconds": [3, 3]}, "its 'seconds' are [3, 3]: from a start to a later end"),
    ({"image": None, "video": "a.mp4", "spans": [3, 4]}, "(of one, the field is 'seconds')"),
    ({"seconds": [3, 4]}, "it has 'seconds', and no 'video' that they are of"),
    ({"choices": ["green", "blue"]}, "its answer is the text of one of its choices, each of which is there once"),
    ({"choices": ["red", "red"]}, "each of which is there once"),
    ({"choices": ["red"]}, "its 'choices' has ['red']: List should have at least 2 items"),
    ({"choices": ["red", "blue"], "scoring": "exact"}, "it has choices, and its scoring is not 'choice'"),
    ({"scoring": "choice"}, "it has no 'choices' to score"),
    ({"scoring": "judge"}, "its 'scoring' has 'judge': Input should be 'phrase'"),
    ({"scoring": "numeric"}, "its answer 'red' is not right by its own scoring, 'numeric'"),
    ({"scoring": "yes-no"}, "its answer 'red' is not right by its own scoring, 'yes-no'"),
    ({"answer": None, "answers": ["3", "red"], "scoring": "label"}, "is not right by its own scoring, 'label'"),
    ({"scoring": "box"}, "its scoring is 'box', and its box is the answer: leave 'answer' out"),
    ({"answer": None, "scoring": "box"}, "its scoring is 'box', and it has 0 boxes: it needs one"),
]
"""Fields, and why a row that has them is refused."""


@pytest.mark.parametrize(("fields", "reason"), REFUSED)
def test_what_is_wrong_with_a_row_is_said(fields: dict[str, Any], reason: str, folder: Path):
    with pytest.raises(BadRow) as refusal:
        sample_of(folder, PLAIN | fields)
    assert reason in str(refusal.value).replace(str(folder), "/pictures")


def test_the_page_explains_every_field_and_its_example_is_read_whole(tmp_path: Path):
    page = (verified.ROOT / "docs/own-data.md").read_text()
    for name in ROW_FIELDS:
        assert f"`{name}`" in page
    rows = [json.loads(line) for line in page.split("```json\n")[1].split("```")[0].splitlines()]
    for row in rows:
        for name in filter(None, (row.get("image"), row.get("video"), *row.get("images", []))):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (640, 480)).save(tmp_path / name, "PNG")
    defaults = plural_fields(rows[0]["defaults"])
    samples = [sample_of(tmp_path, defaults | plural_fields(row)) for row in rows[1:]]
    assert len(samples) >= 4
