"""Faithfulness and its areas, against closed forms and sums of trapezoids."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from corelens.metrics import circuit_model_distance, circuit_performance_ratio, faithfulness
from corelens.metrics.circuits import CircuitCurves

numbers = st.floats(-3, 3)


@given(st.lists(st.tuples(numbers, st.floats(0.01, 1)), min_size=2, max_size=8))
def test_areas_are_sums_of_trapezoids(points: list[tuple[float, float]]):
    """As in a loop over neighbouring sizes; where a circuit never does better than the model, both areas are one."""
    values = torch.tensor([value for value, _ in points], dtype=torch.double)
    shares = torch.tensor([step for _, step in points], dtype=torch.double).cumsum(0)
    under, distance = 0.0, 0.0
    for index in range(len(points) - 1):
        width = float(shares[index + 1] - shares[index])
        under += width * float(values[index] + values[index + 1]) / 2
        distance += width * (abs(1 - float(values[index])) + abs(1 - float(values[index + 1]))) / 2
    assert float(circuit_performance_ratio(values, shares)) == pytest.approx(under, abs=1e-9)
    assert float(circuit_model_distance(values, shares)) == pytest.approx(distance, abs=1e-9)
    below = values.clamp(max=1)
    whole = circuit_performance_ratio(below, shares) + circuit_model_distance(below, shares)
    assert float(whole) == pytest.approx(float(shares[-1] - shares[0]))


@given(st.lists(numbers, min_size=1, max_size=5), st.floats(0.1, 5), numbers)
def test_faithfulness_does_not_depend_on_the_scale_of_the_metric(kept: list[float], factor: float, offset: float):
    means = torch.tensor([*kept, 2.0, -1.0], dtype=torch.double)
    scaled = factor * means + offset
    first, second = (faithfulness(values, full=values[-2], empty=values[-1]) for values in (means, scaled))
    assert_close(first, second)
    assert_close(first, (means + 1) / 3)


def test_what_cannot_be_compared_is_refused():
    one, shares = torch.tensor(1.0), torch.tensor([0.0, 0.5, 0.5])
    with pytest.raises(ValueError, match="the metric is 1 for the whole model and with everything ablated"):
        faithfulness(torch.tensor([0.5]), full=one, empty=one)
    with pytest.raises(ValueError, match="not finite in every pass"):
        faithfulness(torch.tensor([torch.nan]), full=one, empty=-one)
    for area in (circuit_performance_ratio, circuit_model_distance):
        with pytest.raises(ValueError, match=r"shares=\[0.0, 0.5, 0.5\] do not rise"):
            area(torch.zeros(3), shares)


def curves(values: torch.Tensor, groups: tuple[str, ...] = ()) -> CircuitCurves:
    names = tuple(f"s{index}" for index in range(values.shape[-1]))
    return CircuitCurves((0, 1, 4), {"one": values}, "logit margin", "zero", names, groups)


def test_curves_are_of_means_over_samples():
    """Not means of quotients: a sample that the ablated model answers as well would make its quotient infinite."""
    values = torch.tensor([[[0.0, 2.0], [1.0, 2.0], [2.0, 2.0]], [[0.0, 2.0], [0.0, 1.0], [2.0, 2.0]]])
    found = curves(values)
    assert_close(found.faithfulness("one"), torch.tensor([[0, 0.5, 1], [0, -0.5, 1]], dtype=torch.double))
    expected = torch.tensor([0.25 * 0.25 + 0.75 * 0.75, 0.25 * -0.25 + 0.75 * 0.25], dtype=torch.double)
    assert_close(found.area("one", "cpr"), expected)
    assert_close(found.area("one", "cmd")[0], 1 - expected[0])
    (row,) = found.table()
    assert row["cpr"] == pytest.approx(float(expected.mean()))
    assert (row["0"], row["1"], row["4"]) == (0, 0, 1)


def test_intervals_hold_the_area_and_groups_widen_them():
    generator = torch.Generator().manual_seed(0)
    kept = torch.rand(8, generator=generator).repeat_interleave(4)
    values = torch.stack([torch.zeros(32), kept, torch.ones(32)])[None]
    alone, grouped = curves(values), curves(values, tuple(str(index // 4) for index in range(32)))
    low, high = alone.interval("one", "cpr")
    wide_low, wide_high = grouped.interval("one", "cpr")
    assert wide_low < low < float(alone.area("one", "cpr")) < high < wide_high
