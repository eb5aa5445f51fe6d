"""Drawn worlds: reproducible from a seed, with evidence boxes that hold exactly what they claim."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageChops

from corelens.data import charts, documents, haystacks, load, photographs, score
from corelens.data.synthetic.charts import draw_chart, draw_values
from corelens.data.synthetic.documents import draw_document, draw_page
from corelens.data.synthetic.drawing import check_draw
from corelens.data.synthetic.photographs import SHAPES, boxes_of, draw_things, paste
from corelens.tokens import Box

WORLDS = {"documents": documents, "charts": charts, "photographs": photographs}


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest) -> Any:
    return WORLDS[request.param]


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB"))


def changed(before: Image.Image, after: Image.Image) -> Box:
    """The smallest box around all pixels that differ."""
    box = ImageChops.difference(before.convert("RGB"), after.convert("RGB")).getbbox()
    assert box is not None
    return Box(*box)


def around(*boxes: Box) -> Box:
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return Box(min(lefts), min(tops), max(rights), max(bottoms))


def test_a_sample_depends_on_its_seed_and_number_alone(world: Any):
    few, many = list(world(2, seed=5)), list(world(4, seed=5))
    for one, other in zip(few, many[:2], strict=True):
        assert (one.id, one.question, one.answer, one.evidence) == (
            other.id,
            other.question,
            other.answer,
            other.evidence,
        )
        assert np.array_equal(pixels(one.pictures[0]), pixels(other.pictures[0]))
    assert len({sample.id for sample in many}) == 4
    other_seed = next(iter(world(1, seed=6)))
    assert not np.array_equal(pixels(other_seed.pictures[0]), pixels(few[0].pictures[0]))


def test_a_world_can_be_read_twice_and_its_pictures_are_drawn_when_looked_at(world: Any):
    samples = world(2, seed=0)
    assert [sample.answer for sample in samples] == [sample.answer for sample in samples]
    assert samples.skipped == []
    assert all(callable(sample.images[0]) for sample in samples)


def test_boxes_lie_in_the_picture_and_right_answers_score_one(world: Any):
    for sample in world(12, seed=1):
        (evidence,), (picture,) = sample.evidence, sample.pictures
        left, top, right, bottom = evidence.box
        assert 0 <= left < right <= picture.width
        assert 0 <= top < bottom <= picture.height
        assert score(sample, sample.answer) == 1


def test_both_kinds_of_questions_are_asked():
    assert {"," in sample.about["field"] for sample in documents(12, seed=1)} == {True, False}
    assert {sample.scoring for sample in charts(12, seed=1)} == {"numeric", "contains"}
    assert {sample.answer == sample.about["shape"] for sample in photographs(12, seed=1)} == {True, False}


def test_changing_a_field_of_a_document_changes_pixels_in_its_box_alone():
    document = draw_document(np.random.default_rng(0))
    before, boxes = draw_page(document)
    assert len(boxes) == len(document.fields) + 3 * len(document.items)
    for name in document.fields:
        after, moved = draw_page(replace(document, fields={**document.fields, name: "QQQQQQQ"}))
        # The box is as tight as can be: what differs from the page without the value is the box itself.
        assert changed(before, after) == around(boxes[name], moved[name])
    item = next(iter(document.items))
    for column in document.items[item]:
        items = {**document.items, item: {**document.items[item], column: "00000"}}
        after, moved = draw_page(replace(document, items=items))
        assert changed(before, after) == around(boxes[f"{item}, {column}"], moved[f"{item}, {column}"])


def test_no_value_occurs_twice_in_a_document():
    for seed in range(50):
        document = draw_document(np.random.default_rng(seed))
        values = [*document.fields.values(), *(value for item in document.items.values() for value in item.values())]
        assert len(set(values)) == len(values)


def test_changing_a_value_of_a_chart_changes_pixels_of_its_bar_alone():
    chart = draw_values(np.random.default_rng(0))
    before, boxes = draw_chart(chart)
    for label, value in chart.values.items():
        taller = 98 if value < 60 else 3
        after, moved = draw_chart(replace(chart, values={**chart.values, label: taller}))
        both, difference = around(boxes[label], moved[label]), changed(before, after)
        assert (difference.left, difference.right) == (both.left, both.right)
        assert difference.top == both.top
        assert difference.bottom == max(boxes[label].top, moved[label].top)
    assert len(set(chart.values.values())) == len(chart.values)


def test_bars_are_as_high_as_their_values():
    chart = draw_values(np.random.default_rng(3))
    _, boxes = draw_chart(chart)
    heights = {label: boxes[label].bottom - boxes[label].top for label in chart.values}
    per_unit = [heights[label] / value for label, value in chart.values.items()]
    assert max(per_unit) - min(per_unit) < 0.1


def test_removing_a_thing_changes_its_box_alone():
    scene = draw_things(np.random.default_rng(1), ("star", "cross", "circle", "diamond", "square", "triangle"))
    boxes = boxes_of(scene)
    for number, thing in enumerate(scene.things):
        without = replace(scene, things=tuple(other for other in scene.things if other is not thing))
        assert changed(paste(scene), paste(without)) == boxes[number]
    for one, other in [(a, b) for a in boxes for b in boxes if a is not b]:
        assert one.right <= other.left or other.right <= one.left or one.bottom <= other.top or other.bottom <= one.top


def test_things_on_a_photograph_have_shapes_and_colours_of_their_own():
    for seed in range(20):
        things = draw_things(np.random.default_rng(seed), ("star", "cross", "circle")).things
        assert len({thing.shape for thing in things}) == len({thing.colour for thing in things}) == 3


def test_a_haystack_has_its_length_and_its_needle_at_its_depth():
    samples = list(haystacks(2, seed=3, lengths=(3, 5), depths=(0, 0.5, 1)))
    assert len(samples) == 2 * 2 * 3
    for sample in samples:
        length, depth = sample.about["length"], sample.about["depth"]
        assert len(sample.images) == length
        assert sample.evidence[0].media == depth * (length - 1)
        assert len({sample.id for sample in samples}) == len(samples)


def test_the_same_needle_lies_in_longer_haystacks_that_begin_with_the_shorter():
    shallow, deep, longer = (
        next(iter(haystacks(1, seed=3, lengths=(length,), depths=(depth,))))
        for length, depth in ((3, 0), (3, 1), (5, 1))
    )
    assert shallow.answer == deep.answer == longer.answer
    assert shallow.evidence[0].box == longer.evidence[0].box
    assert np.array_equal(pixels(shallow.pictures[0]), pixels(longer.pictures[4]))
    assert np.array_equal(pixels(shallow.pictures[1]), pixels(longer.pictures[0]))
    assert np.array_equal(pixels(deep.pictures[1]), pixels(longer.pictures[1]))


def test_what_cannot_be_drawn_is_refused_by_name():
    with pytest.raises(ValueError, match="two of the depths"):
        haystacks(1, lengths=(3,), depths=(0, 0.1))
    with pytest.raises(ValueError, match="length=0"):
        haystacks(1, lengths=(0,))
    with pytest.raises(ValueError, match="0 <= depth <= 1"):
        haystacks(1, depths=(1.5,))
    with pytest.raises(ValueError, match=r"n_things=7 is outside 1\.\.6"):
        photographs(1, n_things=7)
    with pytest.raises(ValueError, match="n=0"):
        documents(0)
    with pytest.raises(ValueError, match="seed=-1"):
        charts(1, seed=-1)


def test_worlds_have_names_and_unknown_names_are_refused_with_those_known():
    assert [sample.id for sample in load("charts", 2, seed=7)] == ["charts-7-0", "charts-7-1"]
    with pytest.raises(ValueError, match=r"'chart' is no data set that corelens knows; it knows refcocog, .*haystacks"):
        load("chart", 2)
    with pytest.raises(ValueError, match=r"charts: .*'depth'.*it takes .*seed"):
        load("charts", 2, depth=3)
    with pytest.raises(ValueError, match=r"'scenes' is no data set .* are drawn by corelens\.toy\.worlds"):
        load("scenes", 2)


@pytest.mark.parametrize("n", ["two", None, 1.5, 0])
def test_a_number_of_samples_is_a_number(n: object):
    with pytest.raises(ValueError, match=f"n={n!r} and seed=0: a world draws one sample or more"):
        check_draw(n, 0)


def test_shapes_stay_within_their_radius():
    for name, corners in SHAPES.items():
        assert max(abs(edge) for corner in corners for edge in corner) <= 1 + 1e-9, name
        assert max(math.hypot(*corner) for corner in corners) > 0.99, name
