"""All synthetic data sets: reproducible from a seed, with boxes in the picture."""

from collections.abc import Callable

import numpy as np
import pytest

from corelens.data import Samples, charts, documents, haystacks, photographs, score
from corelens.data.synthetic.drawing import check_draw
from tests.helpers.pictures import pixels

WORLDS = {"documents": documents, "charts": charts, "photographs": photographs}


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest) -> Callable[..., Samples]:
    return WORLDS[request.param]


def test_a_sample_depends_on_its_seed_and_number_alone(world: Callable[..., Samples]):
    few, many = list(world(2, seed=5)), list(world(4, seed=5))
    for sample, again in zip(few, many[:2], strict=True):
        assert (sample.id, sample.question, sample.answer, sample.evidence) == (
            again.id,
            again.question,
            again.answer,
            again.evidence,
        )
        assert np.array_equal(pixels(sample.pictures[0]), pixels(again.pictures[0]))
    assert len({sample.id for sample in many}) == 4
    other_seed = next(iter(world(1, seed=6)))
    assert not np.array_equal(pixels(other_seed.pictures[0]), pixels(few[0].pictures[0]))


def test_a_world_can_be_read_twice_and_its_pictures_are_drawn_on_access(world: Callable[..., Samples]):
    samples = world(2, seed=0)
    assert [sample.answer for sample in samples] == [sample.answer for sample in samples]
    assert samples.skipped == []
    assert all(callable(sample.images[0]) for sample in samples)


def test_boxes_lie_in_the_picture_and_right_answers_score_one(world: Callable[..., Samples]):
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


def test_arguments_that_no_world_can_draw_are_errors():
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


@pytest.mark.parametrize("n", ["two", None, 1.5, 0])
def test_a_number_of_samples_is_a_number(n: object):
    with pytest.raises(ValueError, match=f"n={n!r} and seed=0: a world draws one sample or more"):
        check_draw(n, 0)


@pytest.mark.parametrize(
    ("draw", "tasks"),
    [
        (charts, {"value": "What is the value of ", "highest": "Which city has"}),
        (photographs, {"colour": "What colour is", "shape": "Which shape is"}),
        (documents, {"field": "What is the ", "table": "What is the "}),
        (haystacks, {None: "One of the pictures"}),
    ],
)
def test_data_sets_that_ask_several_kinds_of_questions_name_the_kind(
    draw: Callable[..., Samples], tasks: dict[str | None, str]
):
    drawn = list(draw(20))
    assert {sample.about.get("task") for sample in drawn} == tasks.keys()
    assert all(sample.question.startswith(tasks[sample.about.get("task")]) for sample in drawn)
    of_table = [sample for sample in drawn if draw is documents and sample.about["task"] == "table"]
    assert all(" of the " in sample.question for sample in of_table)
