"""Samples of the toy data sets."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corelens import toy
from corelens.data import Sample
from corelens.toy import WORLDS
from corelens.toy.haystacks import draw_mixture
from corelens.toy.scene import SIDE, Split


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 10**6), st.sampled_from(["digits", "shapes", "pages", "bars"]), st.sampled_from(["train", "test"])
)
def test_a_picture_shows_every_key_with_one_value_and_says_where(seed: int, world: str, split: Split):
    rng = np.random.default_rng(seed)
    ((scene,), needles, _) = vars(draw_mixture(rng, (WORLDS[world],), 1, 1, split)).values()
    assert len(scene.things) >= 2
    assert len({thing.key for thing in scene.things}) == len({thing.value for thing in scene.things}) == len(needles)
    for needle in needles:
        left, top, right, bottom = needle.thing.box
        assert 0 <= left < right <= SIDE
        assert 0 <= top < bottom <= SIDE
        crop = scene.picture[int(top) : int(bottom) + 1, int(left) : int(right) + 1].astype(int)
        assert np.ptp(crop.reshape(-1, 3), axis=0).max() > 40, "the box is empty"
        question, answer = WORLDS[world].ask(rng, needle.thing.key, needle.thing.value)
        assert answer in (needle.thing.key, needle.thing.value)
        names = {needle.thing.key: WORLDS[world].key_name, needle.thing.value: WORLDS[world].value_name}
        assert WORLDS[world].task(answer) == names[answer]
        assert (needle.thing.key in question) != (f" {needle.thing.value} " in question)
    mark_names = {mark.name for mark in scene.marks}
    assert {thing.value for thing in scene.things} <= mark_names


@pytest.mark.parametrize("world", ["scenes", "haystacks"])
def test_a_longer_run_begins_with_the_shorter_one(world: str):
    draw = getattr(toy, world)
    short, long = list(draw(2, seed=5)), list(draw(4, seed=5))
    assert [s.question for s in short] == [s.question for s in long[:2]]
    assert [s.images[0].tobytes() for s in short] == [s.images[0].tobytes() for s in long[:2]]  # pyright: ignore
    assert len({s.id for s in long}) == 4


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: toy.scenes(-1, seed=0), "n=-1 and seed=0: a world draws one sample or more"),
        (lambda: toy.texts(2, -1, "copy"), "n=2 and seed=-1: a world draws one sample or more"),
        (
            lambda: toy.pictures("page", 1, seed=0),
            "world='page' is not known; it is one of digits, shapes, pages, bars",
        ),
    ],
)
def test_arguments_that_no_world_can_draw_are_errors_at_once(draw: Callable[[], Iterator[Sample]], message: str):
    with pytest.raises(ValueError, match=message):
        draw()
