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
    assert pair.interval()[0] >= 0


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
    assert (same.mean, same.interval(), same.p_value()) == (0.0, (0.0, 0.0), 1.0)
    with pytest.raises(ValueError, match="at least two samples, and there is 1"):
        PairedDifference(before[:1], before[1:2]).interval()
