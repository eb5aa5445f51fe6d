"""The check of data: counts, refused rows, and for each kind of data the findings that it should get."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from corelens import HookedMLLM, toy
from corelens.data import Evidence, Sample, Samples
from corelens.data.readers.base import BadRow, raise_error
from corelens.study.data_check import check_data

RETRIEVAL, CONTRAST, RELEVANCE, INTERVALS, ACCURACY, KINDS = range(6)
"""The findings, in their order."""


def each(change: Callable[[int, Sample], Sample]) -> list[Sample]:
    """Eighteen scenes, each changed."""
    return [change(number, scene) for number, scene in enumerate(toy.scenes(18, seed=3))]


def changed(**changes: Any) -> list[Sample]:
    return each(lambda number, scene: replace(scene, **changes))


def of_task(*tasks: str) -> list[Sample]:
    return each(lambda number, scene: replace(scene, about={"task": tasks[number % len(tasks)]}))


PLACE = next(iter(toy.scenes(1, seed=3))).evidence
DATA: list[tuple[str, Callable[[], Sequence[Sample]], int, str, str]] = [
    ("scenes", lambda: changed(), RETRIEVAL, "yes", "every sample has evidence"),
    ("scenes", lambda: changed(), CONTRAST, "yes", "of the visual tokens, in the mean"),
    ("scenes", lambda: changed(), RELEVANCE, "yes", "overlaps by"),
    ("scenes", lambda: changed(), INTERVALS, "yes", "which share no picture or document"),
    ("scenes", lambda: changed(), ACCURACY, "yes", "of 8 samples the model answers 8 right"),
    ("two kinds", lambda: of_task("digit", "colour"), KINDS, "yes", "digit, colour"),
    ("one kind", lambda: of_task("digit"), KINDS, "no", "it takes two kinds (`task`) with 8 samples or more"),
    ("no evidence", lambda: changed(evidence=()), RETRIEVAL, "no", "no sample says where its answer is"),
    ("no evidence", lambda: changed(evidence=()), CONTRAST, "no", "no sample that could be prepared has evidence"),
    (
        "some evidence",
        lambda: each(lambda number, scene: replace(scene, evidence=scene.evidence if number % 2 else ())),
        RETRIEVAL,
        "in part",
        "9 of 18 samples have evidence; scans leave the others out",
    ),
    ("whole pictures", lambda: changed(evidence=Evidence()), CONTRAST, "no", "in 18 of 18 samples the evidence is all"),
    ("one place", lambda: changed(evidence=PLACE), RELEVANCE, "no", "overlaps by 100%, in the mean, more than 25%"),
    ("one question", lambda: changed(question="which digit is red ?"), RELEVANCE, "no", "with different questions"),
    ("one picture", lambda: changed(about={"group": "p"}), INTERVALS, "no", "all samples are of one group, 'p'"),
    (
        "three pictures",
        lambda: each(lambda number, scene: replace(scene, about={"group": str(number % 3)})),
        INTERVALS,
        "in part",
        "18 samples of 3 groups: the study needs 4",
    ),
    ("one answer", lambda: changed(answer="7"), ACCURACY, "no", "every answer is '7': a model that always says so"),
    (
        "nothing right",
        lambda: each(lambda number, scene: replace(scene, answer=f"answer {number}")),
        ACCURACY,
        "no",
        "the model answers 0 right; the commonest answer, 'answer 0', is right in 6%. What is not answered cannot be",
    ),
    ("boxes", lambda: each(lambda n, scene: replace(scene, answer=str(n), scoring="box")), ACCURACY, "in part", "unit"),
]
"""Data, the finding in question, its verdict and a part of its reason."""
IDS = [f"{name}-{finding}" for name, _, finding, *_ in DATA]


def rows(samples: Sequence[Sample]) -> Any:
    return iter([(sample.id, partial(replace, sample)) for sample in samples])


@pytest.mark.parametrize(
    ("name", "draw", "finding", "verdict", "reason"), DATA, ids=[f"{n}-{f}" for n, _, f, *_ in DATA]
)
def test_what_can_be_measured_follows_from_the_data(
    name: str, draw: Callable[[], Sequence[Sample]], finding: int, verdict: str, reason: str, toy_model: HookedMLLM
):
    found = check_data(toy_model, Samples(name, partial(rows, draw()))).findings[finding]
    assert found.verdict == verdict
    assert reason in found.reason


def test_samples_that_the_model_cannot_take_have_their_reason(toy_model: HookedMLLM):
    scenes = changed()
    lost = replace(scenes[1], images="nowhere.png")
    broken: Any = ("line 9", partial(raise_error, BadRow("it is broken")))
    samples = Samples("mine", lambda: iter([*rows([scenes[0], lost, *scenes[2:]]), broken]))
    check = check_data(toy_model, samples)
    assert check.refused == (("line 9", "it is broken"),)
    assert [row.id for row in check.unmeasurable] == [lost.id]
    assert "there is no picture file 'nowhere.png'" in check.unmeasurable[0].reason
    assert check.counts["samples"] == 18
    assert check.example == scenes[0]
    with pytest.raises(ValueError, match="none has no sample: 1 rows were refused, line 9 since it is broken"):
        check_data(toy_model, Samples("none", lambda: iter([broken])))
