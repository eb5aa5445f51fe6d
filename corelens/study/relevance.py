"""Relevance: whether the mass of heads follows evidence and question, or stays where it is whatever is asked."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from corelens.data import Evidence, Sample, evidence_tokens
from corelens.data.batching import prepare_batches
from corelens.heads import HeadSet
from corelens.model import HookedMLLM
from corelens.scores import HeadScores
from corelens.study.verdict import Measurement, Source, estimate, not_measured, paired_rows, sources
from corelens.tokens import Box

Sizes = tuple[tuple[int, int], ...]
"""Width and height of every picture or video of a sample, in pixels."""

RULE = (
    "What is retrieved is relevant: the top 5 % of heads, chosen on half of the samples, put at least twice as much "
    "mass on the evidence of a sample as on the place where the evidence of another is, and more under the sample's "
    "own question than under the other's. Premise: the evidence of two samples overlaps "
    "by a quarter at most, so that heads that always look at one place can be told from heads that retrieve."
)

MOST_OVERLAP = 0.25
"""Overlap of the evidence of two samples up to which retrieval can be told from always looking at one place."""

N_PREPARED = 8
"""Samples that are prepared together."""


def partners(samples: Sequence[Sample]) -> list[Sample | None]:
    """Return for each sample the nearest one before it that asks another question about another picture, if any."""
    return [
        next(
            (
                other
                for other in reversed(samples[:index])
                if other.question != sample.question and other.group != sample.group
            ),
            None,
        )
        for index, sample in enumerate(samples)
    ]


def with_other_questions(samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples with the questions of others, and their own evidence; without those that have no partner."""
    pairs = zip(samples, partners(samples), strict=True)
    return [sample.with_question(partner.question) for sample, partner in pairs if partner is not None]


@dataclass(frozen=True)
class MovedEvidence:
    """Samples of a data set with the evidence of others, at the same relative place of their own pictures."""

    samples: list[Sample]
    overlap: list[float]
    """Share of the visual tokens of a sample's own evidence that hold the other's, too."""


def with_other_evidence(model: HookedMLLM, samples: Sequence[Sample]) -> MovedEvidence:
    """Give samples the evidence of others, and measure how far the two overlap.

    Samples without a partner are left out, and those in which there is no such place: a video that is shorter.
    """
    moved, sizes = MovedEvidence([], []), dict[int, Sizes]()
    others = iter(partners(samples))
    for batch, inputs in prepare_batches(model, samples, N_PREPARED, "evidence of other samples"):
        for index, sample in enumerate(batch):
            tokens, partner = inputs.tokens[index], next(others)
            sizes[id(sample)] = tokens.sizes[0]
            if partner is None:
                continue
            changed = replace(sample, evidence=_evidence_of(partner, sizes[id(partner)], sample, tokens.sizes[0]))
            try:
                own, other = (evidence_tokens([one], tokens).float() for one in (sample, changed))
            except ValueError:
                continue
            moved.samples.append(changed)
            moved.overlap.append(float((own * other).sum() / own.square().sum()))
    return moved


def _evidence_of(partner: Sample, partner_sizes: Sizes, sample: Sample, sizes: Sizes) -> tuple[Evidence, ...]:
    """The partner's evidence in the media of a sample, which may be fewer and of other sizes."""
    regions = []
    for region in partner.evidence:
        media = region.media % len(sizes)
        (width, height), (own_width, own_height) = partner_sizes[region.media], sizes[media]
        x, y = own_width / width, own_height / height
        box = region.box and Box(region.box[0] * x, region.box[1] * y, region.box[2] * x, region.box[3] * y)
        seconds = region.seconds if media >= len(sample.images) else None
        regions.append(replace(region, box=box, media=media, seconds=seconds))
    return tuple(regions)


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
