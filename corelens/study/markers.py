"""Markers: whether text around the evidence changes which heads are found."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from corelens.data import Sample
from corelens.metrics import spearman
from corelens.metrics.stability import top_heads
from corelens.scores import HeadScores
from corelens.study.verdict import Finding, estimate, paired_rows, sources

START, END = "<GT_START>", "<GT_END>"
"""The paper's markers (appendix C), which it puts around the evidence in prompts for Qwen."""

RULE = (
    "The paper puts text markers around the evidence in prompts for Qwen, to find its tokens (appendix C), and does "
    "not state that they are taken out before attention is measured; corelens needs none. The same samples are scanned "
    "without markers and with markers around the pictures that hold evidence, paired. They change little if the top 5 "
    "% of heads share at least four of five heads, and the mass of the heads that are top without markers changes by "
    "at most 10 %. The rule is corelens's own."
)


def with_markers(samples: Iterable[Sample]) -> list[Sample]:
    """Return the samples with text markers around every picture or video that holds evidence."""
    return [_with_markers(sample) for sample in samples]


def _with_markers(sample: Sample) -> Sample:
    marked = {region.media for region in sample.evidence}
    parts: list[str | int] = []
    for part in sample.message:
        # Spaces, so that the marker is no part of a word before it.
        parts += [f" {START} ", part, f" {END} "] if isinstance(part, int) and part in marked else [part]
    return replace(sample, prompt=tuple(parts))


def markers(plain: HeadScores, marked: HeadScores, share: float) -> Finding:
    """Test whether markers around the evidence change scores, ranks and the selected heads.

    Args:
        plain: Retrieval attention mass without markers.
        marked: The same of the same samples with markers.
        share: Share of heads that are the top.
    """
    plain_rows, marked_rows = paired_rows(plain, marked)
    before, after = plain.values[plain_rows], marked.values[marked_rows]
    strata = sources(plain.select(plain_rows))
    top = plain.top(share)

    def shared(indices: np.ndarray) -> float:
        one, other = (top_heads(values[indices].nanmean(0), share) for values in (before, after))
        return len(one & other) / len(one)

    layers, numbers = [head.layer for head in top], [head.head for head in top]
    with_text, without = (values[:, layers, numbers] for values in (after, before))

    def mass_ratio(indices: np.ndarray) -> float:
        return float(with_text[indices].nanmean(0).mean() / without[indices].nanmean(0).mean())

    return Finding(
        "Markers: text around the evidence leaves the same heads",
        RULE,
        (
            estimate("shared by the top heads with and without markers", shared, strata, at_least=0.8, within=(0, 1)),
            estimate("mass of the top heads with markers over without, at least", mass_ratio, strata, at_least=0.9),
            estimate("mass of the top heads with markers over without, at most", mass_ratio, strata, at_most=1.1),
            estimate(
                "rank correlation",
                lambda indices: spearman(before[indices].nanmean(0), after[indices].nanmean(0)),
                strata,
                within=(-1, 1),
            ),
        ),
        (f"The markers are {START} and {END}, as the model's tokenizer reads them.",),
    )
