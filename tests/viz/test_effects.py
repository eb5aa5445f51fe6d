"""Figures of accuracy, by their data."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from corelens import HeadSet
from corelens.experiments.ablation_summary import AblationCurve
from corelens.viz import ablation_curves, accuracy_bars, accuracy_strips, speed_against_accuracy, speed_by_length


def ablation_curve() -> AblationCurve:
    heads = HeadSet.parse("L0H0, L0H1")
    return AblationCurve(
        (0.1, 0.2),
        {"top": [[heads], [heads]], "random": [[heads, heads], []]},
        {"top": [[0.5], [0.25]], "random": [[0.8, 1.0], []]},
    )


def test_ablation_curves_show_means_seeds_and_intervals():
    top, band, random = ablation_curves(ablation_curve()).data
    assert (list(top.x), list(top.y)) == ([0.1, 0.2], [0.5, 0.25])
    assert list(top.customdata) == [2, 2]
    assert (list(random.x), list(random.y)) == ([0.1], [0.9])  # no other heads for the larger dose
    assert list(band.y) == [0.8, 1.0]
    interval, *_ = ablation_curves(ablation_curve(), n_samples=100).data
    assert list(interval.x) == [0.1, 0.2, 0.2, 0.1]
    # Wilson interval: (p + z² / 2n ± z sqrt(p (1 - p) / n + z² / 4n²)) / (1 + z² / n)
    p, n, z = 0.5, 100, 1.959964
    half = z * math.sqrt(p * (1 - p) / n + z**2 / 4 / n**2)
    low, high = ((p + z**2 / 2 / n + sign * half) / (1 + z**2 / n) for sign in (-1, 1))
    assert (interval.y[0], interval.y[3]) == pytest.approx((low, high), abs=1e-5)


def test_ablation_curves_over_numbers_of_heads():
    """And the line of nothing ablated."""
    figure = ablation_curves(replace(ablation_curve(), doses=(5, 10), plain=0.9))
    assert figure.layout.xaxis.title.text == "number of heads ablated"
    assert (figure.layout.xaxis.type, figure.layout.xaxis.ticktext) == ("linear", ("5", "10"))
    assert (figure.layout.shapes[0].y0, figure.layout.shapes[0].y1) == (0.9, 0.9)
    shares = ablation_curves(ablation_curve()).layout
    assert (shares.xaxis.title.text, shares.xaxis.ticktext) == ("share of heads ablated", ("10 %", "20 %"))
    assert not shares.shapes


def test_bars_are_means_and_dots_are_seeds():
    copy_accuracies = {"nothing": [0.9], "random": [0.9, 0.9]}
    bars, dots, *_ = accuracy_bars({"scenes": {"nothing": [1.0], "random": [0.5, 0.7]}, "copy": copy_accuracies}).data
    assert np.allclose(bars.y, [1.0, 0.6])
    assert list(zip(dots.x, dots.y, strict=True)) == [("random", 0.5), ("random", 0.7)]
    assert bars.offsetgroup == dots.offsetgroup == "scenes"


def test_speed_and_accuracy_are_at_their_measured_values():
    line, plain = speed_against_accuracy({"sparse": {"half": (1.5, 0.9), "tenth": (2, 0.8)}}, 1).data
    assert (list(line.x), list(line.y), list(line.text)) == ([1.5, 2], [0.9, 0.8], ["half", "tenth"])
    assert (plain.x[0], plain.y[0]) == (1, 1)


def test_speed_by_length_has_a_line_for_each_plan():
    few, many = speed_by_length({"20 heads": {8192: 1, 131072: 2.5}, "250 heads": {8192: 0.9}}).data
    assert (few.name, list(few.x), list(few.y)) == ("20 heads", [8192, 131072], [1, 2.5])
    assert (list(many.x), list(many.y)) == ([8192], [0.9])
    assert speed_by_length({"20 heads": {8192: 1, 1000: 2}}).layout.xaxis.ticktext == ("1,000", "8K")


def test_a_setting_close_to_another_has_its_name_in_the_hover_text():
    crowded = {"one": {"half": (3, 0.9), "tenth": (2, 0.9)}, "other": {"half": (2.95, 0.85), "tenth": (2, 0.5)}}
    first, second, _ = speed_against_accuracy(crowded, 1).data
    assert (list(first.text), list(second.text)) == (["half", "tenth"], ["", "tenth"])
    assert list(second.customdata) == ["half", "tenth"]


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: ablation_curves(ablation_curve(), n_samples=0), "n_samples=0"),
        (lambda: accuracy_bars({"a": {"b": [97.0]}}), "a, b: 97"),
        (lambda: accuracy_bars({"a": {"b": [math.nan]}}), "a, b: nan"),
        (lambda: accuracy_bars({"a": {"b": []}}), "a, b: there is no accuracy"),
        (lambda: speed_against_accuracy({"a": {"b": (0, 1)}}, 1), "speed-up of 0"),
        (lambda: speed_by_length({"a": {8: 1, 16: math.inf}}), "a, 16: a speed-up of inf"),
    ],
)
def test_errors_name_what_cannot_be_drawn(draw: Callable[[], object], message: str):
    with pytest.raises(ValueError, match=message):
        draw()


def test_strips_keep_the_order_of_groups_and_every_draw():
    accuracies = {"b": {"top": [0.1], "random": [0.9, 0.8]}, "a": {"top": [0.3], "random": [0.7]}}
    figure = accuracy_strips(accuracies)
    points = {trace.name: sorted(zip(trace.y, trace.x, strict=True)) for trace in figure.data}
    assert points == {"top": [("a", 0.3), ("b", 0.1)], "random": [("a", 0.7), ("b", 0.8), ("b", 0.9)]}
    assert [trace.name for trace in figure.data][-1] == "top", "the first condition is drawn on top"
    assert figure.layout.yaxis.categoryarray == ("b", "a")
    with pytest.raises(ValueError, match=r"a, top: 1\.2 is no accuracy"):
        accuracy_strips({"a": {"top": [1.2]}})
