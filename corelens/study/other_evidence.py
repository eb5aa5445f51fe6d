"""Samples with the evidence or the question of others, by which relevance is measured."""

from collections.abc import Sequence
from dataclasses import replace

from corelens.data import Evidence, Sample, evidence_tokens
from corelens.data.batching import prepare_batches
from corelens.model import HookedMLLM
from corelens.study.relevance import MovedEvidence
from corelens.tokens import Box

Sizes = tuple[tuple[int, int], ...]
"""Width and height of every picture or video of a sample, in pixels."""

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
