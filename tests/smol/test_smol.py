"""Samples of the English worlds and of written lists."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from corelens import smol
from corelens.smol.texts import draw_list
from corelens.smol.worlds import ENGLISH_WORLDS


@pytest.mark.parametrize("world", ENGLISH_WORLDS)
def test_samples_depend_on_seed_and_number_alone(world: str):
    few, many = list(smol.pictures(world, 3, seed=4)), list(smol.pictures(world, 5, seed=4))
    for one, other in zip(few, many, strict=False):
        for part in ("id", "question", "answer", "evidence"):
            assert getattr(one, part) == getattr(other, part)
        (picture,), (again,) = one.images, other.images
        assert isinstance(picture, Image.Image)
        assert isinstance(again, Image.Image)
        assert np.array_equal(np.asarray(picture), np.asarray(again))
    assert [sample.question for sample in smol.pictures(world, 5, seed=5)] != [sample.question for sample in many]


@pytest.mark.parametrize("world", ENGLISH_WORLDS)
@given(seed=st.integers(0, 1_000))
def test_no_question_has_two_answers(world: str, seed: int):
    drawn = ENGLISH_WORLDS[world](np.random.default_rng(seed), "test")
    assert len({question.text for question in drawn.questions}) == len(drawn.questions)
    assert all(question.text.endswith("?") and question.answer for question in drawn.questions)
    assert all(label.words for label in drawn.labels)


def test_only_the_tasks_that_were_asked_for():
    samples = list(smol.pictures("emoji", 30, seed=0, tasks=("number", "colour")))
    assert {sample.about["task"] for sample in samples} == {"number", "colour"}
    with pytest.raises(ValueError, match="task='weight' is not known; it is one of colour, neighbour, number"):
        smol.pictures("emoji", 1, seed=0, tasks=("weight",))
    with pytest.raises(ValueError, match="world='emojis' is not known"):
        smol.pictures("emojis", 1, seed=0)


@given(seed=st.integers(0, 10_000))
def test_a_list_says_the_answers_to_its_questions(seed: int):
    text, questions = draw_list(np.random.default_rng(seed))
    pairs = dict(pair.rsplit(" ", 1) for pair in text.split(", "))
    assert len(pairs) == 6
    for question in questions:
        if question.task in ("digit", "number"):
            (key,) = (key for key in pairs if key in question.text.removesuffix("?").split())
            assert pairs[key] == question.answer
        else:
            assert pairs[question.answer] == question.text.removesuffix("?").split()[-1]


def test_the_question_of_a_list_is_the_question_alone():
    for sample in smol.lists(10, seed=0):
        assert not sample.images
        (prompt,) = sample.prompt
        assert str(prompt).endswith(f"\n{sample.question}")
