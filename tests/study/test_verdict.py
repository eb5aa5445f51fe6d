"""Verdicts from given intervals, and intervals whose coverage is known."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from corelens.metrics import spearman
from corelens.study import Finding, Measurement
from corelens.study.verdict import Source, Verdict, estimate, estimate_mean, p_value, paired_rows
from tests.helpers.studies import head_scores


def measurement(low: float, high: float, at_least: float | None = None, at_most: float | None = None) -> Measurement:
    return Measurement("number", (low + high) / 2, float(low), float(high), at_least, at_most)


def verdict(*measurements: Measurement) -> Verdict:
    return Finding("claim", "rule", measurements).verdict


def test_a_verdict_needs_every_interval_and_falls_with_one():
    inside = measurement(2, 3, at_least=2.0)
    across = measurement(1, 3, at_least=2.0)
    outside = measurement(1, 1.9, at_least=2.0)
    reported = measurement(0, 0)
    assert verdict(inside, reported) == "supported"
    assert verdict(inside, across) == "inconclusive"
    assert verdict(inside, across, outside) == "not supported"
    assert verdict(measurement(1, 2, at_most=2.0)) == "supported"
    assert verdict(measurement(2.1, 3, at_most=2.0)) == "not supported"
    assert verdict(reported) == verdict() == verdict(measurement(math.nan, math.nan, at_least=1.0)) == "inconclusive"


def test_what_would_change_a_verdict_names_the_numbers():
    finding = Finding("claim", "rule", (measurement(1, 3, at_least=2.0), measurement(5, 6, at_least=4.0)))
    assert finding.found == "1 of 2 needs met. Cannot tell: number: 2 [1, 3]."
    assert finding.would_change == (
        "All of these, with their whole intervals: number at least 2. More samples narrow the intervals."
    )
    assert finding.to_json()["measurements"][1] == {
        "name": "number", "value": 5.5, "low": 5.0, "high": 6.0, "text": "5.5 [5, 6]", "needed": "at least 4",
        "met": True,
    }  # fmt: skip


def test_small_numbers_survive_their_file():
    (saved,) = Finding("claim", "rule", (measurement(1.234567e-9, 3e-7),)).to_json()["measurements"]
    assert (saved["low"], saved["high"]) == (1.234567e-9, 3e-7)


def test_an_interval_holds_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    n_covered = 0
    for _ in range(40):
        values = rng.normal(size=50)
        mean = estimate("mean", lambda indices, values=values: float(values[indices].mean()), [""] * 50)
        n_covered += mean.low <= 0 <= mean.high
    assert 34 <= n_covered <= 40


def test_an_interval_holds_a_number_that_drawing_again_lowers():
    noise = torch.randn(2, 12, 5, 8, generator=torch.Generator().manual_seed(0))
    first, second = noise + 2 * torch.linspace(0, 1, 40).view(5, 8)

    def correlation(indices: np.ndarray) -> float:
        return spearman(first[indices].mean(0), second[indices].mean(0))

    result = estimate("rank correlation", correlation, [""] * 12)
    draws = [correlation(indices) for indices in np.random.default_rng(0).integers(12, size=(200, 12))]
    assert result.low < result.value < result.high
    assert result.high - result.low == pytest.approx(np.subtract(*np.quantile(draws, [0.975, 0.025])), rel=0.3)


def test_a_correlation_that_few_samples_lower_is_found_as_often_as_the_interval_says():
    """Two data sets about the same heads: were there no noise, their ranks would agree."""
    rng = np.random.default_rng(0)
    signal = np.linspace(0, 1, 40)
    n_covered, n_raised = 0, 0
    for _ in range(20):
        first, second = (torch.from_numpy(signal + rng.normal(size=(50, 40))).view(50, 5, 8) for _ in range(2))

        def correlation(indices: np.ndarray, first: torch.Tensor = first, second: torch.Tensor = second) -> float:
            return spearman(first[indices].mean(0), second[indices].mean(0))

        result = estimate("rank correlation", correlation, [""] * 50, within=(-1, 1))
        n_covered += result.high >= 0.97
        n_raised += correlation(np.arange(50)) < result.value
    assert n_covered >= 14
    assert n_raised == 20


def test_twenty_alike_do_not_say_that_all_others_are():
    twenty = estimate_mean("share", np.zeros((20, 1)), ["a"] * 20, (-1, 1))
    assert (twenty.value, twenty.low) == (0, pytest.approx(-0.12, abs=0.04))
    assert twenty.high == pytest.approx(0.12, abs=0.04)
    many = estimate_mean("share", np.zeros((400, 1)), ["a"] * 400, (-1, 1))
    assert -0.01 < many.low < 0
    # Data sets have equal weights, or those that are given.
    values, datasets = np.r_[np.ones((30, 1)), np.zeros((10, 1))], ["a"] * 30 + ["b"] * 10
    assert estimate_mean("mean", values, datasets, (0, 1)).value == 0.5
    assert estimate_mean("difference", values, datasets, (0, 1), weights={"a": 1.0, "b": -2.0}).value == 1.0


def test_what_sums_of_fractions_miss_a_threshold_by_decides_nothing():
    error = 1.0 - 2 / 3 - 1 / 3  # 5.6e-17
    for difference in (
        estimate("difference", lambda indices: error, [""] * 4, at_most=0.0),
        estimate("difference", lambda indices: -error, [""] * 4, at_least=0.0),
        estimate_mean("difference", np.full((4, 1), -error), ["a"] * 4, (-error, -error), at_least=0.0),
    ):
        assert difference.met
        assert str(difference) == "0 [0, 0]"


def test_an_interval_of_a_share_holds_it_as_often_as_it_says():
    rng = np.random.default_rng(0)
    for share in (0.0, 0.03, 0.5, 0.97):
        shares = [estimate_mean("", 1.0 * (rng.random((40, 1)) < share), ["a"] * 40, (0, 1)) for _ in range(100)]
        assert sum(result.low <= share <= result.high for result in shares) >= 90


def test_an_interval_over_random_heads_holds_the_mean_of_all_such_heads():
    rng = np.random.default_rng(0)
    # Costs differ more between sets of heads than between samples.
    costs = [0.5 + 0.2 * rng.standard_normal((1, 5)) + 0.1 * rng.standard_normal((40, 5)) for _ in range(200)]
    results = [estimate_mean("cost", values, ["a"] * 20 + ["b"] * 20, (0, 1)) for values in costs]
    # Five draws are few: with Student's factor of 2.8 in place of the normal one of 2, it would be 95 %.
    assert 160 <= sum(result.low <= 0.5 <= result.high for result in results) <= 195
    over_samples_only = [estimate_mean("cost", values.mean(1, keepdims=True), ["a"] * 40, (0, 1)) for values in costs]
    assert sum(result.low <= 0.5 <= result.high for result in over_samples_only) < 120


def test_a_test_has_no_interval():
    assert str(p_value("p", 0.012345)) == "0.0123"
    assert (p_value("p", 0.5, at_most=0.05).met, p_value("p", 0.01, at_most=0.05).met) == (None, True)


def test_copies_of_a_sample_narrow_no_interval():
    values = np.random.default_rng(0).random(20)
    datasets = ["a"] * 12 + ["b"] * 8
    copies = [Source(dataset, row) for row, dataset in enumerate(datasets)] * 3

    def mean_of(values: np.ndarray) -> Callable[[np.ndarray], float]:
        return lambda indices: float(values[indices].mean())

    for of_copies, of_one in (
        (estimate("", mean_of(np.tile(values, 3)), copies), estimate("", mean_of(values), datasets)),
        (estimate_mean("", np.tile(values, 3)[:, None], copies, (0, 1)),
         estimate_mean("", values[:, None], datasets, (0, 1))),
    ):  # fmt: skip
        assert (of_copies.value, of_copies.low) == pytest.approx((of_one.value, of_one.low))
        assert of_copies.high == pytest.approx(of_one.high)


def test_samples_are_drawn_within_their_data_sets():
    datasets = ["a"] * 3 + ["b"] * 5
    share = estimate("share", lambda indices: float((indices < 3).mean()), datasets)
    assert (share.low, share.high) == (3 / 8, 3 / 8)


def test_samples_are_paired_by_data_set_and_id():
    """Data sets may number their samples alike, and one of the scores may lack some."""
    values = torch.zeros(4, 1, 1)
    one = replace(head_scores(values, ("a", "a", "b", "b")), samples=("0", "1", "0", "1"))
    other = one.select([3, 0])
    assert paired_rows(one, other) == ([0, 3], [1, 0])
    assert paired_rows(one, replace(other, datasets=("c", "c"))) == ([], [])
