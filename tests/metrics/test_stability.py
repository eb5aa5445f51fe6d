"""Stability and agreement of rankings: coverage of intervals, closed forms and enumerated draws."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nan

from corelens.metrics import (
    jaccard,
    overlap,
    rank_biased_overlap,
    spearman,
    spearman_interval,
    spearman_matrix,
    stability_curve,
    stable_heads,
)


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


def test_no_split_divides_a_group_and_data_sets_count_alike():
    noise = torch.randn(10, 10, 10, generator=torch.Generator().manual_seed(0))
    groups = [number for number in range(10) for _ in range(4)]
    of_groups = stability_curve(noise.repeat_interleave(4, 0), groups=groups)
    assert of_groups.n_samples == stability_curve(noise).n_samples
    assert of_groups.mean.tolist() == stability_curve(noise).mean.tolist()
    with pytest.raises(ValueError, match="1 group of samples cannot be split"):
        stability_curve(noise, groups=["a"] * 10)
    # A hundred samples of noise, and twenty that agree.
    values = torch.randn(120, 1, 20, generator=torch.Generator().manual_seed(0))
    values[100:] = torch.linspace(0, 2, 20)
    alike = stability_curve(values, 0.25, datasets=["noise"] * 100 + ["signal"] * 20)
    assert alike.mean[-1] > stability_curve(values, 0.25).mean[-1] + 0.2


def test_agreement_of_rankings():
    assert jaccard({1, 2, 3}, {2, 3, 4}) == 0.5
    scores = torch.tensor([[1.0, 2.0, 3.0, nan]])
    assert spearman(scores, scores**3) == pytest.approx(1)
    assert spearman(scores, -scores) == pytest.approx(-1)
    letters = list("abcdefgh")
    assert rank_biased_overlap(letters, letters) == pytest.approx(1)
    swapped_top, swapped_end = list("bacdefgh"), list("abcdefhg")
    assert rank_biased_overlap(letters, swapped_top, 0.5) < rank_biased_overlap(letters, swapped_end, 0.5) < 1
    # By hand: A_1 = 0, A_2 = 1; (1 - p)(0 + p) + p^2.
    assert rank_biased_overlap("ab", "ba", 0.5) == pytest.approx(0.5 * 0.5 + 0.25)
    with pytest.raises(ValueError, match="rankings of 2 and 3 heads"):
        rank_biased_overlap("ab", "abc")


@settings(deadline=None)  # other work may hold the processor
@given(st.data())
def test_chance_is_the_hypergeometric_distribution_and_counts_what_draws_share(data: st.DataObject):
    n_heads = data.draw(st.integers(1, 8))
    heads = data.draw(st.sets(st.integers(0, n_heads - 1)))
    size = data.draw(st.integers(0, n_heads))
    shared_counts = [len(heads & set(drawn)) for drawn in combinations(range(n_heads), size)]
    other_heads = set(data.draw(st.permutations(range(n_heads)))[:size])
    result = overlap(heads, other_heads, n_heads)
    assert result.shared == len(heads & other_heads)
    assert result.expected == pytest.approx(sum(shared_counts) / len(shared_counts))
    assert result.expected == pytest.approx(len(heads) * size / n_heads)
    at_least_as_many = sum(shared >= result.shared for shared in shared_counts)
    assert result.p_value == pytest.approx(at_least_as_many / len(shared_counts))
    n_ways = sum(
        math.comb(len(heads), shared) * math.comb(n_heads - len(heads), size - shared)
        for shared in range(result.shared, min(len(heads), size) + 1)
    )
    assert result.p_value == pytest.approx(n_ways / math.comb(n_heads, size))
    assert sum(shared < result.low for shared in shared_counts) <= 0.025 * len(shared_counts)
    assert sum(shared > result.high for shared in shared_counts) <= 0.025 * len(shared_counts)


def test_sets_of_more_heads_than_there_are_have_no_chance():
    with pytest.raises(ValueError, match="the sets name 3 heads of n_heads=2"):
        overlap({1, 2}, {3}, 2)


def test_the_interval_of_a_rank_correlation_holds_it_as_often_as_it_says():
    draw = torch.Generator().manual_seed(0)
    correlation, n_heads, n_covered = 6 / math.pi * math.asin(0.6 / 2), 60, 0
    for _ in range(300):
        scores, noise = torch.randn(2, 1, n_heads, generator=draw)
        low, high = spearman_interval(spearman(scores, 0.6 * scores + 0.8 * noise), n_heads)
        n_covered += low < correlation < high
    assert 0.91 < n_covered / 300 < 0.99
    # By hand, where the correlation is zero: tanh(1.96 / sqrt(n - 3)).
    assert spearman_interval(0.0, 19)[1] == pytest.approx(math.tanh(1.959964 / 4))
    assert spearman_interval(1.0, 50)[0] > 0.999
    assert spearman_interval(0.5, 3) == (-1, 1)


def test_stable_heads_are_those_at_or_above_the_percentile_of_every_data_set():
    scores = torch.rand(4, 6, 8, generator=torch.Generator().manual_seed(0))
    scores[:, 2, 3] = 2.0
    scores[:, 0] = torch.nan
    stable = stable_heads(scores)
    for layer in range(1, 6):
        for head in range(8):
            thresholds = [np.percentile(dataset[1:].flatten().double(), 95) for dataset in scores]
            expected = sum(float(scores[t, layer, head]) >= thresholds[t] for t in range(4))
            assert float(stable.matrix[layer, head]) == expected
    assert bool(stable.matrix[0].isnan().all())
    assert stable.matrix[2, 3] == 4
    assert sum(stable.n_heads) == 40
    assert [int((stable.matrix == count).sum()) for count in range(5)] == list(stable.n_heads)


def test_chance_of_stable_heads_is_binomial_and_what_draws_give():
    by_chance = stable_heads(torch.rand(4, 36, 32, generator=torch.Generator().manual_seed(0))).by_chance
    assert by_chance[4] == pytest.approx(1152 * 0.05**4)
    assert by_chance[1] == pytest.approx(1152 * 4 * 0.05 * 0.95**3)
    drawn = np.mean(
        [stable_heads(torch.rand(4, 36, 32, generator=torch.Generator().manual_seed(n))).n_heads for n in range(40)], 0
    )
    assert drawn[:3] == pytest.approx(by_chance[:3], rel=0.05)


def test_the_spearman_matrix_holds_every_pair():
    scores = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0))
    scores[:, 1, 1] = torch.nan
    matrix = spearman_matrix(scores)
    for row in range(3):
        for column in range(3):
            assert float(matrix[row, column]) == pytest.approx(spearman(scores[row], scores[column]))


def test_data_sets_of_other_heads_have_no_stable_heads():
    scores = torch.rand(2, 2, 2)
    for share in (0.0, 1.0, 5):
        with pytest.raises(ValueError, match="is outside"):
            stable_heads(scores, share)
    scores[1, 0, 0] = torch.nan
    for function in (stable_heads, spearman_matrix):
        with pytest.raises(ValueError, match="data set 1 scores other heads than data set 0"):
            function(scores)
    with pytest.raises(ValueError, match="no head has a score"):
        stable_heads(torch.full((2, 2, 2), torch.nan))
