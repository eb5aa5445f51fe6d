"""Groups of samples: found where there are two, and rarely where there is one."""

import numpy as np
import pytest
import torch

from corelens import HookedMLLM, scan, toy
from corelens.experiments.scan_summary import describe_groups, scan_summary
from corelens.metrics import sample_groups
from corelens.metrics.dip_test import SMALLEST_P


def test_one_population_is_rarely_taken_for_two():
    """Heads differ by orders of magnitude, and samples by a common factor: neither makes a group."""
    generator = torch.Generator().manual_seed(0)

    def draw(n: int) -> torch.Tensor:
        heads, samples = (torch.randn(shape, generator=generator).exp() for shape in ((1, 4, 8), (n, 1, 1)))
        return torch.randn(n, 4, 8, generator=generator).exp() * heads * samples

    p_values = np.array([sample_groups(draw(n)).p_value for n in (8, 20, 60) for _ in range(50)])
    assert (p_values < 0.05).mean() <= 0.05


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_two_populations_are_told_apart(share: float):
    generator = torch.Generator().manual_seed(1)
    values = torch.rand(60, 4, 8, generator=generator) * 0.3
    first = torch.arange(60) < 60 * share
    values[first, 1, 2:4] += 1
    values[~first, 3, 5:7] += 1
    values[:, 0, 0] = torch.nan
    groups = sample_groups(values)
    assert groups.p_value < 0.01
    assert torch.equal(groups.first, first)


def test_scenes_fall_into_their_two_kinds_of_questions(toy_model: HookedMLLM):
    samples = list(toy.scenes(40, seed=3))
    scores = scan(toy_model, samples, "ram_last")
    _, first = sample_groups(scores.values)
    tasks = np.array([sample.about["task"] for sample in samples])
    assert len({*tasks[first.numpy()]}) == len({*tasks[~first.numpy()]}) == 1
    summary = scan_summary(scores)
    assert sorted(summary["groups"]["samples"]) == sorted([int(first.sum()), int((~first).sum())])
    assert describe_groups(summary).startswith("The mean hides two groups of samples")
    assert describe_groups(scan_summary(scan(toy_model, samples[:7], "ram_last"))) == ""


def test_too_few_samples_or_heads_are_refused():
    with pytest.raises(ValueError, match="7 samples and 4 heads with a score in all: too few"):
        sample_groups(torch.rand(7, 2, 2))
    with pytest.raises(ValueError, match="9 samples and 0 heads"):
        sample_groups(torch.full((9, 2, 2), torch.nan))


def test_a_p_value_is_no_smaller_than_the_table_of_the_test():
    values = torch.zeros(100, 1, 2)
    values[:50, 0, 0], values[50:, 0, 1] = 1.0, 1.0
    assert sample_groups(values).p_value == SMALLEST_P
