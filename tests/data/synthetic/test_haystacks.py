"""Haystacks: length, depth and needle."""

import numpy as np

from corelens.data import haystacks
from tests.helpers.pictures import pixels


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
