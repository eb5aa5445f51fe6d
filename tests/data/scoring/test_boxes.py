"""Boxes are read from answers in the forms and units in which models state them."""

import pytest

from corelens.data.scoring.boxes import box_hit, iou, parse_box
from corelens.tokens import Box

SIZE = (200, 100)


@pytest.mark.parametrize(
    "prediction",
    [
        "[50, 20, 100, 80]", "(50,20),(100,80)", "<box>(50, 20), (100, 80)</box>", "<box>[[50, 20, 100, 80]]</box>",
        '```json\n[{"bbox_2d": [50, 20, 100, 80], "label": "cup 2"}]\n```', "It is at 50 20 100 80.",
        "<|box_start|>(50,20),(100,80)<|box_end|>", "[50.0, 20.0, 100.0, 80.0]",
        "[50., 20., 100., 80.]", "[5.0e1, 2e1, 1E2, 80]", "There are 2 dogs: [50, 20, 100, 80]", "1. [50, 20, 100, 80]",
        "image 1 [50, 20, 100, 80]", "image1 50, 20, 100, 80", "[50, 20, 100, 80], [1, 2, 3, 4]",
        "50 20 100 80 and not [1, 2, 3, 4]",
    ],
)  # fmt: skip
def test_boxes_are_read_from_the_forms_in_which_models_say_them(prediction: str):
    assert parse_box(prediction, SIZE, "pixels") == Box(50, 20, 100, 80)


def test_boxes_are_scaled_from_the_unit_that_is_stated():
    expected = Box(50, 20, 100, 80)
    assert parse_box("[250, 200, 500, 800]", SIZE, "thousandths") == expected
    assert parse_box("[0.25, 0.2, 0.5, 0.8]", SIZE, "fractions") == expected
    assert parse_box("[100, 40, 200, 160]", SIZE, (400, 200)) == expected


def test_boxes_that_do_not_fit_their_unit_or_have_no_area_are_not_guessed():
    assert parse_box("[250, 200, 500, 800]", SIZE, "pixels") is None
    assert parse_box("[250, 200, 500, 800]", SIZE, "fractions") is None
    assert parse_box("[50, 20, 50, 80]", SIZE, "pixels") is None
    assert parse_box("[100, 20, 50, 80]", SIZE, "pixels") is None
    assert parse_box("[1, 2, 3]", SIZE, "pixels") is None
    # One of five numbers is none of the box, and nothing says which.
    assert parse_box("image 1, 50, 20, 100, 80", SIZE, "pixels") is None
    assert parse_box("2 50, 20, 100, 80", SIZE, "pixels") is None
    assert parse_box("[50, 20, 100, 80, 90]", SIZE, "pixels") is None
    assert parse_box("[\u22125, 20, 100, 80]", SIZE, "pixels") is None
    # The type checks of the tests raise as early as corelens does without them.
    with pytest.raises((ValueError, TypeError), match="percent"):
        parse_box("[1, 2, 3, 4]", SIZE, "percent")


def test_iou_is_counted_pixel_by_pixel():
    first, second = Box(0, 0, 4, 6), Box(2, 1, 7, 5)
    pixels = [
        {(x, y) for x in range(int(b.left), int(b.right)) for y in range(int(b.top), int(b.bottom))}
        for b in (first, second)
    ]
    assert iou(first, second) == len(pixels[0] & pixels[1]) / len(pixels[0] | pixels[1])
    assert iou(first, first) == 1
    assert iou(first, Box(4, 0, 5, 6)) == 0


def test_a_box_hits_from_an_iou_of_one_half():
    right = Box(0, 0, 10, 10)
    assert box_hit("[0, 0, 10, 5]", right, SIZE, "pixels") == 1
    assert box_hit("[0, 0, 10, 4.9]", right, SIZE, "pixels") == 0
    assert box_hit("there", right, SIZE, "pixels") is None
