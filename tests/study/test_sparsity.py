"""Sparsity of scores whose concentration is known."""

import pytest
import torch

from corelens.reports.study import _sparsity
from corelens.study.sparsity import EXCESS, _gini, sparsity
from tests.helpers.studies import head_scores, relevant


@pytest.mark.usefixtures("few_draws")
def test_sparsity_is_supported_where_two_of_forty_heads_hold_all_and_not_where_all_hold_alike():
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(30, 4, 10, generator=generator)
    sparse = noise * 0.01
    sparse[:, 1, :2] += 1
    untrained = [head_scores(noise), head_scores(noise.flip(2))]
    assert sparsity(head_scores(sparse), untrained, relevant()).verdict == "supported"
    assert sparsity(head_scores(noise), [head_scores(noise.flip(0))], relevant()).verdict == "not supported"
    # One of the untrained models is as sparse, so that the interval over models reaches far down.
    one_alike = sparsity(head_scores(sparse), [*untrained, head_scores(sparse)], relevant())
    assert one_alike.verdict == "inconclusive"
    # Heads that look at one place hold their mass whatever the evidence is.
    assert sparsity(head_scores(sparse), untrained, relevant(factor=1)).verdict == "not supported"
    assert sparsity(head_scores(sparse), untrained, relevant(overlap=0.9)).verdict == "cannot be tested"


@pytest.mark.usefixtures("few_draws")
def test_sparsity_says_nothing_of_few_heads_or_of_no_mass():
    few_heads = torch.zeros(10, 1, 8)
    few_heads[..., 0] = 1
    few = sparsity(head_scores(few_heads), [head_scores(few_heads)], relevant())
    assert few.verdict == "cannot be tested"
    no_mass = head_scores(torch.full((10, 4, 10), -0.1))
    mass = head_scores(torch.rand(10, 4, 10))
    assert sparsity(mass, [no_mass], relevant()).verdict != "supported"
    assert sparsity(no_mass, [mass], relevant()).verdict == "inconclusive"
    for scores, untrained, n_curves in ((mass, no_mass, 2), (no_mass, mass, 1)):
        (figure,) = _sparsity({EXCESS.name: scores}, {EXCESS.name: untrained})
        names = {trace.name for trace in figure.data if trace.showlegend is not False and trace.name}
        assert len(names) >= n_curves
    assert _sparsity({EXCESS.name: no_mass}, {EXCESS.name: no_mass}) == []


def test_the_gini_coefficient_of_one_head_that_holds_all_is_what_the_formula_says():
    """For n heads of which one holds all mass it is (n - 1) / n, and zero for equal heads."""
    values = torch.zeros(2, 1, 10)
    values[:, 0, 3] = 1
    assert _gini(values) == pytest.approx(0.9)
    assert _gini(torch.ones(2, 1, 10)) == pytest.approx(0, abs=1e-6)
