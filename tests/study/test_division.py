"""Division of labour of made-up heads that attend narrowly or broadly."""

import pytest
import torch

from corelens import HeadScores
from corelens.study import Finding
from corelens.study.division import METRICS, division
from tests.helpers.studies import head_scores, relevant


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
    finding = division(ram, narrow, core, relevant())
    assert finding.verdict == "supported"
    values = {measurement.name: measurement.value for measurement in finding.measurements}
    # All but two heads have a third of the attention on pictures of these two, which hold all but a part of the mass.
    assert values["heads that hold half, vision-head scores over mass"] > 1
    vision_heads_as_sparse = narrow | {"vision_heads": two_groups(0.9, 0.01)}
    assert division(ram, vision_heads_as_sparse, core, relevant()).verdict == "not supported"
    assert values["pairs in which the CoRe head's map is less scattered"] == 1
    as_broad = narrow | {"question_entropy": two_groups(3.9, 4)}
    assert division(ram, as_broad, core, relevant()).verdict == "not supported"
    # Heads that look at one place, and data whose evidence always is there.
    assert division(ram, narrow, core, relevant(factor=1)).verdict == "not supported"
    assert division(ram, narrow, core, relevant(overlap=0.9)).verdict == "cannot be tested"


def division_of(log_mass: torch.Tensor, entropy: torch.Tensor, generator: torch.Generator) -> Finding:
    """The finding on a hundred noisy samples of heads [layer head]; the first half chooses, the second is measured."""

    def measured(per_head: torch.Tensor, noise: float, low: float, high: float) -> torch.Tensor:
        return (per_head + noise * torch.randn(100, *log_mass.shape, generator=generator)).clamp(low, high)

    mass = measured(log_mass, 0.5, -20, -0.05).exp()
    visual = measured(torch.full_like(log_mass, 0.4), 0.1, 0.05, 1)
    values = {
        "ram": mass,
        "question_entropy": measured(entropy, 0.4, 0, 4.3),
        "evidence_share": (mass / visual).clamp(0, 1),
        "vision_heads": visual,
        "question_spatial_entropy": measured(entropy / 2, 0.3, 0, 10),
    }
    first, second = ({name: head_scores(of_name[start::2]) for name, of_name in values.items()} for start in (0, 1))
    assert {*values} == {*METRICS, "ram"}
    return division(first["ram"], second, first["ram"].top(0.05), relevant())


@pytest.mark.usefixtures("few_draws")
def test_a_continuum_of_heads_is_no_division_and_two_kinds_are():
    """One quantity of a bell curve drives mass and entropy in the former; in the latter, 6 of 96 heads are others."""
    generator = torch.Generator().manual_seed(0)

    def bell() -> torch.Tensor:
        return torch.randn(6, 16, generator=generator)

    continua, kinds = [], []
    for _ in range(10):
        quantity = bell()
        continua.append(division_of(-3.2 + 0.9 * quantity, 3 - 0.6 * quantity, generator).verdict)
        retrieving = (torch.rand(96, generator=generator).argsort() < 6).view(6, 16)
        log_mass, entropy = -3.2 + 0.5 * bell(), 3 + 0.3 * bell()
        log_mass[retrieving], entropy[retrieving] = -0.5, 1
        kinds.append(division_of(log_mass, entropy, generator).verdict)
    assert continua.count("supported") <= 1
    assert kinds.count("supported") >= 8
