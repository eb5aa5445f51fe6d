"""Curves of head scores, by their data."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from corelens import Head, HeadScores, HeadSet
from corelens.viz import (
    depth_profiles,
    group_distributions,
    heads_by_two,
    lorenz_curves,
    sample_distribution,
    score_curve,
)
from tests.helpers.figures import head_scores


@pytest.fixture
def scores() -> HeadScores:
    return HeadScores(torch.arange(12.0).reshape(1, 3, 4) / 12, "mass", ("a",))


def test_the_curve_is_sorted_and_colours_the_chosen(scores: HeadScores):
    (bars,) = score_curve(scores, scores.top(0.25)).data
    assert list(bars.y) == sorted(bars.y, reverse=True)
    assert list(bars.customdata)[:3] == ["L2H3", "L2H2", "L2H1"]
    assert len(set(bars.marker.color[:3])) == 1
    assert bars.marker.color[2] != bars.marker.color[3]


def test_lorenz_curves_reach_half_at_their_dots():
    one_head, even = torch.eye(10)[:1], torch.ones(1, 10)
    first, first_dot, second, second_dot = lorenz_curves({"one": head_scores(one_head), "even": head_scores(even)}).data
    assert first.y[1] == 1
    assert (first_dot.x[0], first_dot.y[0]) == (0.1, 1.0)
    assert np.allclose(second.y, second.x)
    assert (second_dot.x[0], second_dot.y[0]) == pytest.approx((0.5, 0.5))


def test_depth_profiles_of_models_of_different_depth_share_one_axis():
    at_the_end = torch.zeros(4, 2)
    at_the_end[3] = 1
    line, centre, even, middle = depth_profiles(
        {"small": head_scores(at_the_end), "large": head_scores(torch.ones(9, 2))}
    ).data
    assert list(line.y) == [0, 0, 0, 4]  # all of the score in a quarter of the layers
    assert centre.x[0] == 1
    assert np.allclose(even.y, 1)
    assert (even.x[0], even.x[-1]) == (0, 1)
    assert middle.x[0] == pytest.approx(0.5)


def test_heads_by_two_metrics_are_at_both_scores():
    across = head_scores(torch.tensor([[1.0, 2.0, 3.0], [4.0, math.nan, 6.0]]), "entropy")
    up = head_scores(torch.tensor([[0.1, 0.2, math.nan], [0.4, 0.5, 0.6]]), "share")
    others, chosen = heads_by_two(across, up, HeadSet.parse("L1H0, L0H1, L0H2")).data
    places = {
        head: (float(x), float(y))
        for dots in (others, chosen)
        for head, x, y in zip(dots.customdata, dots.x, dots.y, strict=True)
    }
    # L0H2 and L1H1 have one of the two scores.
    assert places == {head: pytest.approx(xy) for head, xy in
                  {"L0H0": (1, 0.1), "L0H1": (2, 0.2), "L1H0": (4, 0.4), "L1H2": (6, 0.6)}.items()}  # fmt: skip
    assert list(chosen.customdata) == ["L1H0", "L0H1"]
    assert others.marker.color != chosen.marker.color
    figure = heads_by_two(across, up, HeadSet(()))
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("entropy", "share")
    with pytest.raises(ValueError, match=r"entropy is of \(2, 3\) layers and heads and share of \(1, 3\)"):
        heads_by_two(across, head_scores(torch.ones(1, 3), "share"), HeadSet(()))


def test_two_groups_hold_every_head_with_a_finite_score_once():
    entropy = head_scores(torch.tensor([[1.0, 2.0, 3.0], [4.0, math.nan, math.inf]]), "entropy")
    share = head_scores(torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]), "share")
    figure = group_distributions({"entropy": entropy, "visual_share": share}, HeadSet.parse("L1H0, L0H1"))
    groups = [(box.name, sorted(box.y.tolist())) for box in figure.data]
    assert groups == [
        ("others", [1, 3]), ("chosen", [2, 4]),
        ("others", pytest.approx([0.1, 0.3, 0.5, 0.6])), ("chosen", pytest.approx([0.2, 0.4])),
    ]  # fmt: skip
    assert [title.text for title in figure.layout.annotations[:2]] == ["entropy", "visual share"]
    with pytest.raises(ValueError, match="there are no scores"):
        group_distributions({}, HeadSet(()))


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: score_curve(head_scores(torch.ones(1, 2)), HeadSet.parse("L3H1")), "L3H1 cannot"),
        (lambda: lorenz_curves({}), "no scores"),
        (lambda: lorenz_curves({"a": head_scores(-torch.ones(1, 2))}), "no head has a positive"),
        (lambda: depth_profiles({}), "no scores"),
    ],
)
def test_errors_name_what_cannot_be_drawn(draw: Callable[[], object], message: str):
    with pytest.raises(ValueError, match=message):
        draw()


def test_every_sample_is_a_dot_at_its_score_in_the_row_of_its_data_set():
    values = torch.tensor([0.1, 0.7, torch.nan, 0.4, torch.inf]).reshape(5, 1, 1)
    scores = HeadScores(values, "mass", tuple("abcde"), datasets=("one", "two", "one", "one", "two"))
    two, one = sample_distribution(scores.aggregate("median"), Head(0, 0)).data
    assert (one.name, one.text, one.x.tolist()) == ("one", ("a", "d"), pytest.approx([0.1, 0.4]))
    assert (two.name, two.text, two.x.tolist()) == ("two", ("b",), pytest.approx([0.7]))
    with pytest.raises(ValueError, match="L1H0 has no score by mass"):
        sample_distribution(scores, Head(1, 0))
