"""Paired differences against the normal interval and the t-test."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from corelens.causal import PairedDifference


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
