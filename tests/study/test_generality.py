"""Generality of scores that data sets or models share, and of scores that they do not."""

import pytest
import torch

from corelens import HeadScores
from corelens.study.generality import generality
from tests.helpers.studies import head_scores


@pytest.mark.usefixtures("few_draws")
def test_generality_needs_the_same_heads_in_both_data_sets():
    generator = torch.Generator().manual_seed(0)
    datasets = ("a",) * 20 + ("b",) * 20
    signal = torch.rand(40, generator=generator)
    shared = signal.view(4, 10) + 0.1 * torch.rand(40, 4, 10, generator=generator)
    reversed_in_b = shared.clone()
    reversed_in_b[20:] = reversed_in_b[20:].flatten(1).flip(1).view(20, 4, 10)
    untrained = [head_scores(0.1 * torch.rand(40, 4, 10, generator=generator), datasets) for _ in range(2)]
    assert generality(head_scores(shared, datasets), untrained).verdict == "supported"
    # Of two untrained models, one agrees as much: the interval over models reaches far down.
    one_alike = generality(head_scores(shared, datasets), [untrained[0], head_scores(shared, datasets)])
    assert one_alike.verdict == "inconclusive"
    assert generality(head_scores(reversed_in_b, datasets), untrained).verdict == "not supported"
    one_dataset = generality(head_scores(shared[:20], ("a",) * 20), untrained)
    assert one_dataset.verdict == "inconclusive"
    assert "two or more" in one_dataset.notes[0]


@pytest.mark.usefixtures("few_draws")
def test_other_models_are_compared_by_depth_and_only_alike_ones_by_head():
    generator = torch.Generator().manual_seed(0)

    def peaked(n_layers: int, layer: int) -> HeadScores:
        values = 0.01 * torch.rand(6, n_layers, 20, generator=generator)
        values[:, layer, :n_layers] += torch.arange(n_layers, 0, -1)
        return head_scores(values, ("a",) * 6)

    scores, late, longer = peaked(5, 1), peaked(5, 4), peaked(9, 2)
    finding = generality(scores, [scores], {"late": late, "longer": longer, "itself": scores})
    measurements = {measurement.name: measurement for measurement in finding.measurements}
    depth_name = "relative depth of top heads, less that in "
    assert [measurements[depth_name + name].value for name in ("late", "longer", "itself")] == [-0.75, 0, 0]
    assert measurements[depth_name + "late"].high < 0
    assert measurements["shared by top sets with late"].value == 0
    assert measurements["shared by top sets with itself"].value == 1
    assert measurements["rank correlation with itself"].value == pytest.approx(1)
    assert "shared by top sets with longer" not in measurements
    assert "It has 9 layers of 20 heads, this model 5 layers of 20 heads" in finding.notes[2]
    assert finding.verdict == "inconclusive"  # one data set: other models are not in the rule
