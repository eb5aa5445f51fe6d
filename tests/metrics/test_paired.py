"""Paired differences against the normal interval and the t-test."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from corelens.causal import PairedDifference


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            [0.1, float("nan"), 0.3],
            [0.1, 0.2, 0.3],
            "before has no finite number for 1 of 3 samples, .* number 1:",
        ),
        ([0.1], [float("inf")], "after has no finite number"),
        ([0.1], [0.1, 0.2], "before has 1 samples and after has 2"),
        ([0.1, 0.2, 0.3], [0.1, 0.2], "before has 3 samples and after has 2"),
        ([], [], r"before has the shape \[0\]"),
        ([[0.1]], [[0.2]], r"before has the shape \[1, 1\]"),
    ],
)
def test_numbers_that_are_no_pairs(
    before: list[float], after: list[float], message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # as it is for users
    with pytest.raises(ValueError, match=message):
        PairedDifference(before, after)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("kind", [list, np.array, lambda numbers: torch.tensor(numbers).bfloat16()])
def test_pairs_are_numbers_of_any_kind(kind: Callable[[list[float]], Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    pair = PairedDifference(kind([0.0, 1.0, 0.5]), kind([1.0, 1.0, 1.0]))
    assert pair.mean == 0.5
    low, high = pair.interval()
    assert low < 0.5 < high


def test_paired_differences_and_their_interval():
    rng = np.random.default_rng(0)
    before = torch.from_numpy(rng.normal(size=200))
    shifts = torch.from_numpy(rng.normal(0.3, 1, size=200))
    pair = PairedDifference(before, before + shifts)
    low, high = pair.interval()
    normal = stats.norm.interval(0.95, float(shifts.mean()), float(shifts.std()) / 200**0.5)
    assert_close((low, high), normal, atol=0.03, rtol=0)
    assert_close(pair.p_value(), float(stats.ttest_1samp(shifts, 0).pvalue), atol=2e-3, rtol=0)
    same = PairedDifference(before > 0, before > 0)
    assert (same.mean, same.p_value()) == (0.0, 1.0)
    with pytest.raises(ValueError, match="at least two samples, and there is 1"):
        PairedDifference(before[:1], before[1:2]).interval()


N_SAMPLES_AND_LOSSES = [
    (n, losses) for n in (10, 20, 50, 200, 1000) for losses in (0.002, 0.02, 0.05, 0.3, 0.5) if n * losses <= 100
]


@pytest.mark.parametrize(("n", "losses"), N_SAMPLES_AND_LOSSES)
def test_the_interval_of_a_change_in_accuracy_holds_it_as_often_as_it_says(n: int, losses: float):
    # The interval depends on how many of the samples are lost; so its coverage is a sum over that number.
    lost = np.arange(n + 1)
    probability = stats.binom.pmf(lost, n, losses)
    right, covered = torch.ones(n), 0.0
    for count in lost[probability > 1e-3]:
        low, high = PairedDifference(right, (torch.arange(n) >= int(count)).float()).interval()
        assert low < high
        covered += probability[count] * (low <= -losses <= high)
    assert covered > 0.93
    if n * losses >= 10:
        assert covered < 0.98


def test_copies_of_a_pair_say_nothing_new():
    rng = np.random.default_rng(0)
    before, after = torch.from_numpy(rng.random((2, 30)))
    once = PairedDifference(before, after)
    copies = PairedDifference(before.repeat(4), after.repeat(4), list(range(30)) * 4)
    assert copies.interval() == pytest.approx(once.interval())
    assert copies.p_value() == pytest.approx(once.p_value())
    assert PairedDifference(copies.before, copies.after).p_value() < copies.p_value()
    with pytest.raises(ValueError, match="at least two groups of samples, and there is 1"):
        PairedDifference(before, after, ["a picture"] * 30).interval()
    with pytest.raises(ValueError, match="2 groups were given for 30 samples"):
        PairedDifference(before, after, ["a", "b"])


def test_p_values_of_clustered_samples_are_small_as_often_as_they_say():
    rng, groups = np.random.default_rng(0), [number for number in range(12) for _ in range(4)]
    found = dict.fromkeys(("grouped", "alone"), 0)
    for _ in range(100):
        changes = torch.from_numpy((rng.normal(size=(12, 1)) + rng.normal(size=(12, 4))).ravel())
        zeros = torch.zeros(48, dtype=torch.double)
        found["grouped"] += PairedDifference(zeros, changes, groups).p_value() <= 0.05
        found["alone"] += PairedDifference(zeros, changes).p_value() <= 0.05
    assert found["grouped"] <= 10
    assert found["alone"] >= 15


def test_equal_answers_do_not_say_that_all_others_are_equal():
    for n in (2, 20, 400):
        low, high = PairedDifference(torch.ones(n), torch.ones(n)).interval()
        # Of events that did not happen in n samples, 3 / n is the upper bound of the share (the rule of three).
        assert low == pytest.approx(-min(3 / n, 1), rel=0.4)
        assert high == pytest.approx(min(3 / n, 1), rel=0.4)


def test_numbers_beyond_zero_and_one_get_no_interval_of_scores():
    changes = 1e-3 * torch.randn(50, generator=torch.Generator().manual_seed(0))
    low, high = PairedDifference(torch.full((50,), -5.0), changes - 5).interval()
    assert -1e-3 < low < high < 1e-3
