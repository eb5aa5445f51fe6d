"""Small studies: scores, data sets and a budget."""

from dataclasses import replace

import torch
from torch import Tensor

from corelens import HeadScores, Sample, toy
from corelens.study import StudyBudget
from corelens.study.relevance import MovedEvidence, relevance
from corelens.study.verdict import Measurement

SMALL_BUDGET = StudyBudget(
    n_seeds=1,
    n_matched=2,
    n_untrained=1,
    doses=(5, 20),
    methods=(("mean", "both"),),
    kept_fractions=(0.05,),
    n_rounds=1,
    n_effects=2,
)


def head_scores(values: Tensor, datasets: tuple[str, ...] = ()) -> HeadScores:
    """Scores [sample layer head] with numbered samples."""
    return HeadScores(values, "ram", tuple(map(str, range(len(values)))), datasets=datasets)


def study_samples(n: int) -> tuple[dict[str, list[Sample]], dict[str, list[Sample]]]:
    """Scenes of few digits and of many as two data sets, and a text task."""
    pictures = {"few": list(toy.scenes(n, 0, n_things=3)), "many": list(toy.scenes(n, 0))}
    return pictures, {"copy": list(toy.texts(n, 0, "copy"))}


def relevant(factor: float = 10.0, overlap: float = 0.1) -> tuple[Measurement, ...]:
    """Measurements of heads with so many times as much mass on their own evidence, for their own question."""
    own = head_scores(1 + torch.rand(20, 2, 4, generator=torch.Generator().manual_seed(0)))
    null = replace(own, values=own.values / factor)
    moved = MovedEvidence([Sample(str(number), "q", "a") for number in range(20)], [overlap] * 20)
    return relevance(own, null, null, own.top(2), {"": moved})
