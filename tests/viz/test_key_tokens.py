"""Figures of key tokens, by their data."""

import numpy as np
import pytest

from corelens.experiments.key_token_results import CoverageCurve, HitRate
from corelens.viz import coverage_curves, hit_rate_bars


def test_hit_rates_have_a_bar_for_the_ratio_and_one_for_the_hits():
    rates = {"top": HitRate(0.25, 0.2), "bottom": HitRate(0.02, 0.01), "chance": HitRate(0.05, 0.0)}
    ratio, hits = hit_rate_bars(rates, 10, 0.6).data
    assert list(ratio.x) == list(hits.x) == ["top 10", "bottom 10", "chance"]
    assert (list(ratio.y), list(hits.y)) == ([0.25, 0.02, 0.05], [0.2, 0.01, 0.0])
    assert "0.6" in hits.name
    with pytest.raises(ValueError, match="there are no rates"):
        hit_rate_bars({})


def test_coverage_has_a_line_and_a_band_for_every_ranking_and_a_dotted_chance():
    mean = np.array([0.1, 0.3, 0.4])
    curve = CoverageCurve(np.array([1, 2, 3]), mean, mean - 0.05, mean + 0.05)
    chance = CoverageCurve(np.array([1, 2, 3]), 1 - 0.95 ** np.array([1, 2, 3]), mean, mean)
    figure = coverage_curves({"top": curve, "bottom": curve}, chance)
    band, line, _, _, dotted = figure.data
    assert list(band.x) == [1, 2, 3, 3, 2, 1]
    assert np.allclose(band.y, [0.05, 0.25, 0.35, 0.45, 0.35, 0.15])
    assert (line.name, dotted.name, dotted.line.dash) == ("top", "chance", "dot")
    assert np.allclose(line.y, mean)
    assert np.allclose(dotted.y, chance.mean)
    with pytest.raises(ValueError, match="there are no curves"):
        coverage_curves({}, chance)
