"""Ablation curves against a closed form."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from corelens import HeadScores, ablation_curve


def test_a_dose_curve_measures_every_set_of_heads():
    values = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0))
    scores = HeadScores(values, "something", ("a", "b", "c"))
    curve = ablation_curve(scores, lambda heads: 1 - len(heads) / 20, fractions=(0.1, 0.5, 0.8), seeds=range(3))
    assert_close(curve.mean("top"), [0.9, 0.5, 0.2])
    assert curve.sd("random")[:2] == [0.0, 0.0]
    assert [len(sets) for sets in curve.heads["random"]] == [3, 3, 0]
    assert [len(sets) for sets in curve.heads["next-ranked"]] == [1, 1, 0]
    assert np.isnan(curve.mean("next-ranked")[2])
    assert curve.heads["top"][0][0].heads == tuple(scores.ranked()[:2])
    with pytest.raises(ValueError, match=r"fraction=0\.0 is outside"):
        ablation_curve(scores, lambda heads: 1 / 0, fractions=(0.1, 0.0))
