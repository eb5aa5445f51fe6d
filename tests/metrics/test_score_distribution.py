"""Distribution of scores: closed forms, and drawn scores of one group and of two."""

import runpy
from functools import partial

import pytest
import torch
from torch import nan
from torch.testing import assert_close

from corelens.metrics import (
    bimodality_test,
    depth_profile,
    elbow,
    group_difference,
    localization_heads,
    lorenz_curve,
    rho,
)
from tests.helpers.verified import ROOT

SIMULATION = runpy.run_path(str(ROOT / "benchmarks" / "error_rates.py"))
"""Made-up populations of heads, and how often a group is found in them."""


def test_rho_lorenz_and_elbow():
    scores = torch.tensor([[4.0, 1.0, -1.0, nan], [3.0, 1.0, 1.0, 0.0]])
    assert_close(lorenz_curve(scores), torch.tensor([0.0, 0.4, 0.7, 0.8, 0.9, 1.0, 1.0, 1.0]))
    assert rho(scores, 0.5) == pytest.approx(2 / 7)
    assert rho(scores, 0.4) == pytest.approx(1 / 7)
    assert elbow(torch.tensor([9.0, 8.5, 1.0, 0.9, 0.8, 0.0])) == 2
    for scores_without_mass in (torch.zeros(2, 3), -torch.ones(2, 2)):
        with pytest.raises(ValueError, match="no head has a positive score"):
            rho(scores_without_mass)
    with pytest.raises(ValueError, match="there is no elbow"):
        elbow(torch.ones(5))


def test_localization_heads_look_at_the_picture_and_at_one_place():
    share = torch.tensor([[[0.9, 0.8, 0.05, 0.04, 0.03, 0.0]]]).expand(2, 1, 6)
    entropy = torch.tensor([[[2.0, 1.0, 0.0, 0.0, 0.0, 0.0]], [[torch.inf, 1.0, 0.0, 0.0, 0.0, 0.0]]])
    assert localization_heads(share, entropy, 1).int().tolist() == [[[0, 1, 0, 0, 0, 0]]] * 2
    assert localization_heads(share, entropy, 2).int().tolist() == [[[1, 1, 0, 0, 0, 0]], [[0, 1, 0, 0, 0, 0]]]


def test_two_groups_are_told_from_one():
    draw = torch.Generator().manual_seed(0)
    broad = torch.randn(1, 300, generator=draw) - 6
    retrieving = torch.randn(1, 100, generator=draw) / 2
    one_group = bimodality_test(broad.exp())
    two_groups = bimodality_test(torch.cat([broad, retrieving], 1).exp())
    assert one_group.p_value > 0.1
    assert two_groups.p_value < 0.01
    assert two_groups.upper_share == pytest.approx(0.25, abs=0.02)
    assert 0.02 < two_groups.threshold < 0.3
    with pytest.raises(ValueError, match="6 heads have 1 different scores"):
        bimodality_test(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="3 heads have 3 different scores"):
        bimodality_test(torch.tensor([[1.0, 2.0, 3.0, nan]]))


@pytest.mark.parametrize(
    "with_others",
    [
        pytest.param(lambda noise: noise, id="around zero, as calibrated scores are"),
        pytest.param(lambda noise: noise.clamp(min=0), id="zeros, as of heads that do not see the picture"),
        pytest.param(lambda noise: noise - 5, id="all negative"),
        pytest.param(lambda noise: noise.exp(), id="all positive"),
    ],
)
def test_one_bell_curve_is_one_group_whatever_its_signs(with_others):
    draw = torch.Generator().manual_seed(0)
    p_values = [bimodality_test(with_others(torch.randn(6, 16, generator=draw))).p_value for _ in range(40)]
    assert sum(p < 0.05 for p in p_values) <= 4


def test_two_groups_around_zero_are_told_apart_where_they_meet():
    draw = torch.Generator().manual_seed(0)
    noise = 0.01 * torch.randn(1, 300, generator=draw)
    found = bimodality_test(torch.cat([noise, 0.5 + 0.01 * torch.randn(1, 100, generator=draw)], 1))
    assert found.p_value < 0.01
    assert 0.05 < found.threshold < 0.45
    assert found.upper_share == 0.25


@pytest.mark.parametrize("n_heads", [48, 96, 400])
@pytest.mark.parametrize("shape", SIMULATION["CONTINUA"])
def test_the_top_of_a_continuum_is_no_group(shape: str, n_heads: int):
    found = SIMULATION["share_of_groups"](partial(SIMULATION["continuum"], shape), n_heads, 200)
    assert found <= (0.15 if shape == "heavy-tailed" else 0.08)


@pytest.mark.parametrize(("n_heads", "power"), [(96, 0.6), (400, 0.95)])
def test_heads_of_another_kind_are_a_group(n_heads: int, power: float):
    assert SIMULATION["share_of_groups"](partial(SIMULATION["two_kinds"], 2.5), n_heads, 200) >= power


def test_a_group_needs_heads_and_others():
    heads = torch.arange(12.0).view(1, 12)
    found = group_difference(heads, torch.where(heads > 9, -1.0, heads), heads > 9)
    assert found.difference < 0
    with_nan = torch.cat([heads, torch.tensor([[nan, 3.0]])], 1)
    missing = torch.cat([torch.where(heads > 9, -1.0, heads), torch.tensor([[1.0, nan]])], 1)
    assert group_difference(with_nan, missing, with_nan > 9) == found
    for group, message in ((heads > 10, "1 heads cannot be"), (heads > 1, "10 heads cannot be compared with 0")):
        with pytest.raises(ValueError, match=message):
            group_difference(heads, heads, group)


def test_depth_is_relative():
    scores = torch.tensor([[0.0, 0.0], [nan, nan], [3.0, 1.0], [1.0, -5.0], [0.0, 0.0]])
    profile = depth_profile(scores)
    assert_close(profile.depth, torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
    assert_close(profile.share, torch.tensor([0.0, 0.0, 0.8, 0.2, 0.0]))
    assert profile.centre == pytest.approx(0.55)
    assert profile.mean[1].isnan()
