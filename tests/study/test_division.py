"""Division of labour of made-up heads that attend narrowly or broadly."""

import torch

from corelens import HeadScores
from corelens.study import division
from corelens.study.division import METRICS
from tests.helpers.studies import head_scores


def test_division_needs_core_heads_that_look_narrowly():
    generator = torch.Generator().manual_seed(0)

    def two_groups(core_value: float, other_value: float) -> HeadScores:
        values = other_value + 0.01 * torch.rand(20, 4, 10, generator=generator)
        values[:, 1, :2] += core_value - other_value
        return head_scores(values)

    ram = two_groups(0.9, 0.05)
    core = ram.top(0.05)
    scores = [two_groups(1, 4), two_groups(0.9, 0.1), two_groups(0.9, 0.5), two_groups(0, 2)]
    narrow = dict(zip(METRICS, scores, strict=True))
    finding = division(ram, narrow, core)
    assert finding.verdict == "supported"
    values = {measurement.name: measurement.value for measurement in finding.measurements}
    assert values["pairs in which the CoRe head's map is less scattered"] == 1
    assert division(ram, narrow | {"entropy": two_groups(3.9, 4)}, core).verdict == "not supported"
