"""Drawn samples are the same on every machine and in every version: their digests are those of golden.json.

Digests of what a model computes differ between machines; `tests/helpers/golden.py` compares those on one.
"""

import json
from pathlib import Path

from tests.helpers.golden import differences, samples

GOLDEN = Path(__file__).with_name("golden.json")


def test_drawn_samples_keep_their_questions_pixels_and_boxes():
    assert not differences(json.loads(GOLDEN.read_text()), samples())
