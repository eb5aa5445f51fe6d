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
    narrow = dict(zip(METRICS, scores, strict=True)) | {"ram": ram}
    finding = division(ram, narrow, core)
    assert finding.verdict == "supported"
    values = {measurement.name: measurement.value for measurement in finding.measurements}
    # All but two heads have a third of the attention on pictures of these two, which hold all but a part of the mass.
    assert values["heads that hold half, vision-head scores over mass"] > 1
    vision_heads_as_sparse = narrow | {"vision_heads": two_groups(0.9, 0.01)}
    assert division(ram, vision_heads_as_sparse, core).verdict == "not supported"
    assert values["pairs in which the CoRe head's map is less scattered"] == 1
    assert division(ram, narrow | {"question_entropy": two_groups(3.9, 4)}, core).verdict == "not supported"
