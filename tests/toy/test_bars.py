"""Bar charts of days."""

import numpy as np
import pytest

from corelens.toy.bars import draw


def test_higher_bars_are_higher():
    scene = draw(np.random.default_rng(0), [("mon", "9"), ("tue", "1"), ("wed", "4")], "test")
    heights = {thing.value: thing.box.bottom - thing.box.top for thing in scene.things}
    assert heights["9"] - heights["4"] == pytest.approx((heights["4"] - heights["1"]) * 5 / 3)
