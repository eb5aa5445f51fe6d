"""P-values against scipy's t-tests, and the share of false discoveries where the truth is known."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nan
from torch.testing import assert_close

from corelens.metrics import false_discovery_rates, mean_p_values


def test_p_values_are_those_of_t_tests():
    rng = np.random.default_rng(0)
    one, other = torch.from_numpy(rng.normal(0.3, 1, (20, 2, 3))), torch.from_numpy(rng.normal(0.1, 3, (7, 2, 3)))
    expected = torch.as_tensor(stats.ttest_1samp(one, 0).pvalue)
    assert_close(mean_p_values(one), expected)
    copies, groups = one.repeat(4, 1, 1), list(range(20)) * 4
    assert_close(mean_p_values(copies, groups), expected)
    assert bool((mean_p_values(copies) < expected).all())
    # The mean of two means is zero where one is minus the other.
    of_both = mean_p_values(torch.cat([one, other]), datasets=["a"] * 20 + ["b"] * 7)
    assert_close(of_both, torch.as_tensor(stats.ttest_ind(one, -other, equal_var=False).pvalue))


def test_heads_without_a_test_have_no_p_value():
    drops = torch.tensor([[0.0, 0.5, nan, 1.0, 1.0], [0.0, 0.5, nan, 2.0, nan], [0.0, 0.5, nan, 0.5, nan]])
    p_values = mean_p_values(drops)
    assert_close(p_values[[0, 3]], torch.tensor([1.0, stats.ttest_1samp([1, 2, 0.5], 0).pvalue], dtype=torch.double))
    assert bool(p_values[[1, 2, 4]].isnan().all())
    assert bool(mean_p_values(drops, groups=["a picture"] * 3)[3].isnan())
    # A data set in which a head has no score says nothing of it.
    with_another = torch.cat([drops, torch.full((2, 5), nan)])
    assert_close(mean_p_values(with_another, datasets=[*"aaabb"])[3], p_values[3])


def test_rates_by_hand():
    p_values = torch.tensor([[0.001, 0.008, nan], [0.039, 0.041, 0.9]], dtype=torch.double)
    by_hand = [[5 * 0.001, 5 / 2 * 0.008, nan], [5 / 4 * 0.041, 5 / 4 * 0.041, 0.9]]
    assert_close(false_discovery_rates(p_values), torch.tensor(by_hand, dtype=torch.double), equal_nan=True)
    assert bool(false_discovery_rates(torch.full((3,), nan)).isnan().all())


@pytest.mark.parametrize("n_true", [0, 10])
def test_the_share_of_false_discoveries_is_what_it_says(n_true: int):
    """A hundred heads on twenty pictures with three questions each, of which `n_true` have an effect."""
    rng, groups = np.random.default_rng(0), [picture for picture in range(20) for _ in range(3)]
    false_shares, n_found, n_alone = [], 0, 0
    for _ in range(200):
        drops = (rng.normal(size=(20, 1, 100)) + rng.normal(size=(20, 3, 100))).reshape(60, 100)
        drops[:, :n_true] += 1.5
        p_values = mean_p_values(torch.from_numpy(drops), groups)
        found = false_discovery_rates(p_values) <= 0.1
        false_shares.append(float(found[n_true:].sum()) / max(1, int(found.sum())))
        n_found += int(found[:n_true].sum())
        n_alone += int((p_values[n_true:] <= 0.05).sum())
    assert np.mean(false_shares) <= 0.13
    assert n_found >= 0.95 * 200 * n_true
    assert n_alone / 200 == pytest.approx(0.05 * (100 - n_true), rel=0.15)  # what each test by itself lets pass
