"""Small studies: scores, data sets and a budget."""

from torch import Tensor

from corelens import HeadScores, Sample, toy
from corelens.study import StudyBudget

SMALL_BUDGET = StudyBudget(
    n_seeds=1, n_matched=2, doses=(5, 20), methods=(("mean", "both"),), kept_fractions=(0.05,), n_rounds=1, n_effects=2
)


def head_scores(values: Tensor, datasets: tuple[str, ...] = ()) -> HeadScores:
    """Scores [sample layer head] with numbered samples."""
    return HeadScores(values, "ram", tuple(map(str, range(len(values)))), datasets=datasets)


def study_samples(n: int) -> tuple[dict[str, list[Sample]], dict[str, list[Sample]]]:
    """Scenes of few digits and of many as two data sets, and a text task."""
    pictures = {"few": list(toy.scenes(n, 0, n_things=3)), "many": list(toy.scenes(n, 0))}
    return pictures, {"copy": list(toy.texts(n, 0, "copy"))}
