"""Confidence intervals, stability over samples, and the agreement of rankings."""

import pytest
import torch
from torch import nan

from corelens.metrics import bootstrap_interval, jaccard, rank_biased_overlap, spearman, stability_curve


def test_bootstrap_intervals_cover_the_mean_as_often_as_they_say():
    draw = torch.Generator().manual_seed(0)
    # Forty times five heads, each an experiment of its own with thirty samples.
    values = torch.randn(30, 40, 5, generator=draw, dtype=torch.double) + 3
    low, high = bootstrap_interval(values, 0.9)
    covered = ((low < 3) & (high > 3)).double().mean()
    assert 0.83 < covered < 0.95
    assert torch.equal(bootstrap_interval(values, 0.9).low, low)
    values[:, 0, 0] = nan
    low, _ = bootstrap_interval(values)
    assert low[0, 0].isnan()
    assert (~low.isnan()).sum() == 199


def test_stability_is_perfect_without_noise_and_chance_with_noise_alone():
    draw = torch.Generator().manual_seed(0)
    signal = torch.randn(1, 10, 10, generator=draw)
    noise = torch.randn(40, 10, 10, generator=draw)
    assert stability_curve(signal.expand(40, -1, -1)).mean.tolist() == [1.0] * 10
    assert abs(stability_curve(noise, 0.1).mean.mean() - 0.1) < 0.04
    mixed = stability_curve(signal + noise, 0.1)
    assert (mixed.n_samples[0], mixed.n_samples[-1]) == (1, 20)
    assert mixed.mean[-1] > mixed.mean[0] + 0.2
    with pytest.raises(ValueError, match="1 sample cannot be split"):
        stability_curve(noise[:1])


def test_agreement_of_rankings():
    assert jaccard({1, 2, 3}, {2, 3, 4}) == 0.5
    one = torch.tensor([[1.0, 2.0, 3.0, nan]])
    assert spearman(one, one**3) == pytest.approx(1)
    assert spearman(one, -one) == pytest.approx(-1)
    letters = list("abcdefgh")
    assert rank_biased_overlap(letters, letters) == pytest.approx(1)
    swapped_top, swapped_end = list("bacdefgh"), list("abcdefhg")
    assert rank_biased_overlap(letters, swapped_top, 0.5) < rank_biased_overlap(letters, swapped_end, 0.5) < 1
    # By hand: A_1 = 0, A_2 = 1; (1 - p)(0 + p) + p^2.
    assert rank_biased_overlap("ab", "ba", 0.5) == pytest.approx(0.5 * 0.5 + 0.25)
    with pytest.raises(ValueError, match="rankings of 2 and 3 heads"):
        rank_biased_overlap("ab", "abc")
