"""Relevance: whether the mass of heads follows evidence and question, or stays where it is whatever is asked."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from corelens.data import Sample
from corelens.heads import HeadSet
from corelens.scores import HeadScores
from corelens.study.verdict import Measurement, Source, estimate, not_measured, paired_rows, sources

RULE = (
    "What is retrieved is relevant: the top 5 % of heads, chosen on half of the samples, put at least twice as much "
    "mass on the evidence of a sample as on the place where the evidence of another is, and more under the sample's "
    "own question than under the other's. Premise: the evidence of two samples overlaps "
    "by a quarter at most, so that heads that always look at one place can be told from heads that retrieve."
)

MOST_OVERLAP = 0.25
"""Overlap of the evidence of two samples up to which retrieval can be told from always looking at one place."""


@dataclass(frozen=True)
class MovedEvidence:
    """Samples of a data set with the evidence of others, at the same relative place of their own pictures."""

    samples: list[Sample]
    overlap: list[float]
    """Share of the visual tokens of a sample's own evidence that hold the other's, too."""


def relevance(
    own: HeadScores,
    moved: HeadScores | None,
    asked: HeadScores | None,
    heads: HeadSet,
    moved_evidence: Mapping[str, MovedEvidence],
) -> tuple[Measurement, ...]:
    """Measure how far the mass of heads follows evidence and question; what several claims need (`RULE`).

    Args:
        own: Retrieval attention mass of samples on which `heads` were not chosen.
        moved: The same on the evidence of other samples; None if no sample has a partner.
        asked: The same under the questions of other samples.
        heads: The heads.
        moved_evidence: The evidence of other samples, by data set.
    """
    name = "overlap of the evidence of two samples"
    mean_overlap = not_measured(name, at_most=MOST_OVERLAP)
    shares = np.array([share for of_dataset in moved_evidence.values() for share in of_dataset.overlap])
    if len(shares):
        moved_sources = [
            Source(dataset, sample.group) for dataset, of in moved_evidence.items() for sample in of.samples
        ]
        mean_overlap = estimate(
            name, lambda indices: float(shares[indices].mean()), moved_sources, at_most=MOST_OVERLAP, within=(0, 1)
        )
    return (
        replace(mean_overlap, of_premise=True),
        _ratio("mass of the top heads, over that on the evidence of other samples", own, moved, heads, 2.0),
        _ratio("mass of the top heads, over that under the questions of other samples", own, asked, heads, 1.0),
    )


def _ratio(name: str, own: HeadScores, null: HeadScores | None, heads: HeadSet, at_least: float) -> Measurement:
    """Mean mass of heads, over that of the same samples under a null."""
    own_rows, null_rows = paired_rows(own, null) if null is not None else ([], [])
    if null is None or not own_rows:
        return not_measured(name, at_least)
    layers, numbers = [head.layer for head in heads], [head.head for head in heads]
    masses, null_masses = (
        scores.values[of_pairs][:, layers, numbers].mean(1).double().numpy()
        for scores, of_pairs in ((own, own_rows), (null, null_rows))
    )

    def log_ratio(indices: np.ndarray) -> float:
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(np.log(masses[indices].mean()) - np.log(null_masses[indices].mean()))

    # Logarithms of ratios are nearer to a bell curve, and no bound is below zero.
    measured = estimate(name, log_ratio, sources(own.select(own_rows)))
    value, low, high = (math.exp(number) for number in (measured.value, measured.low, measured.high))
    return Measurement(name, value, low, high, at_least)
