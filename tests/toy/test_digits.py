"""Scenes of handwritten digits."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from corelens.toy.digits import WORLD, draw_scene, glyphs
from corelens.toy.scene import COLOURS, SIDE, Split, photograph_regions


def test_splits_share_no_handwriting_and_no_photograph():
    train, test = (
        {glyph.tobytes() for of_digit in glyphs(split).values() for glyph in of_digit} for split in ("train", "test")
    )
    assert len(train) > 1_300
    assert len(test) > 350
    assert not train & test
    widths = [[photograph.shape[1] for photograph in photograph_regions(split)] for split in ("train", "test")]
    assert [left + right for left, right in zip(*widths, strict=True)] == [640, 640]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 8), st.sampled_from(["train", "test"]))
def test_questions_have_one_answer_and_boxes_hold_the_thing(seed: int, n_things: int, split: Split):
    rng = np.random.default_rng(seed)
    scene = draw_scene(rng, n_things, split)
    assert len({thing.key for thing in scene.things}) == len({thing.value for thing in scene.things})
    assert len(scene.things) == n_things
    for thing in scene.things:
        question, answer = WORLD.ask(rng, thing.key, thing.value)
        assert [t for t in scene.things if f" {t.key} " in question or f" {t.value} " in question] == [thing]
        assert answer in (thing.key, thing.value)
        left, top, right, bottom = (int(edge) for edge in thing.box)
        assert 0 <= left < right <= SIDE
        assert 0 <= top < bottom <= SIDE
        # Somewhere in the box the picture has nearly the thing's colour.
        pixels = scene.picture[top:bottom, left:right].reshape(-1, 3).astype(int)
        assert np.abs(pixels - np.array(COLOURS[thing.key])).max(1).min() < 60
