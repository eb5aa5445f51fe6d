"""Haystacks and mixtures: every needle is in one picture."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from corelens.toy import WORLDS
from corelens.toy.haystacks import draw_haystack, draw_mixture


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(1, 12))
def test_a_needle_of_a_mixture_is_in_one_picture_of_its_world(seed: int, n_pictures: int, n_needles: int):
    worlds = tuple(WORLDS.values())
    mixture = draw_mixture(np.random.default_rng(seed), worlds, n_pictures, n_needles, "test")
    assert len(mixture.scenes) == n_pictures
    n_expected = min(n_needles, n_pictures)
    assert min(n_expected, 5) <= len(mixture.needles) <= n_expected, "five of seven days can be asked for"
    for needle in mixture.needles + mixture.others:
        assert needle.thing in mixture.scenes[needle.picture].things
        keys, values = needle.world.keys, needle.world.values
        scenes = [s for s in mixture.scenes if all(t.key in keys and t.value in values for t in s.things)]
        things = [thing for scene in scenes for thing in scene.things]
        assert [t for t in things if t.key == needle.thing.key or t.value == needle.thing.value] == [needle.thing]


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 6), st.integers(1, 4))
def test_a_needle_of_a_haystack_is_in_it_once(seed: int, n_pictures: int, n_things: int, n_needles: int):
    haystack = draw_haystack(np.random.default_rng(seed), n_pictures, n_things, n_needles, "test")
    assert len(haystack.scenes) == n_pictures
    assert len(haystack.needles) == n_needles
    things = [thing for scene in haystack.scenes for thing in scene.things]
    for needle in haystack.needles:
        assert needle.thing in haystack.scenes[needle.picture].things
        same = [thing for thing in things if thing.value == needle.thing.value or thing.key == needle.thing.key]
        assert same == [needle.thing]
    assert max(len(scene.things) for scene in haystack.scenes) <= max(n_things, n_needles)
