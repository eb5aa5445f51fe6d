"""Claim 3, division of labour: CoRe heads attend narrowly and to the evidence, others broadly."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from corelens.heads import HeadSet
from corelens.metrics import Metric, bimodality_test, group_difference, group_rows, rho, spearman
from corelens.scores import HeadScores
from corelens.study import relevance
from corelens.study.verdict import Finding, Measurement, estimate, p_value, sources

EVIDENCE_SHARE = Metric(
    "evidence_share",
    "share of the attention on pictures that is on the evidence",
    normalisation="share",
    source="corelens's own: VERA's ratio (arXiv 2602.10146), from the question's tokens.",
)

METRICS = ("question_entropy", EVIDENCE_SHARE.name, "vision_heads", "question_spatial_entropy")
"""Metrics that describe the attention of every head, from the question's tokens to all tokens or to the picture."""

RULE = (
    "The top 5 % of heads, chosen on half of the samples, attend in the other half to no more than half as many tokens "
    "as other heads (exponential of the difference in mean entropy), and put at least twice as large a share of their "
    "visual attention on the evidence. Chosen heads are extreme in any continuum, so that they must also be a group: "
    "of less entropy than its trend over the mass, among heads above the median, makes expect (analysis of covariance "
    f"of normal scores, p <= .05). {relevance.RULE} Half of the "
    "retrieval attention mass lies in fewer heads than half of the vision-head scores, the attention of the question "
    "to all visual tokens: the paper's contrast (section 4.2, figure 4), which it shows as a picture without numbers. "
    "Thresholds are corelens's own. Intervals are over samples. The dip test for two peaks is reported and not in the "
    "rule: a group of 5 % is too small a peak for it in models of few heads."
)


def every_other(scores: Mapping[str, HeadScores], start: Literal[0, 1]) -> dict[str, HeadScores]:
    """Scores of every other group of samples: the first half chooses heads whose attention is described on the second.

    Where each sample is its own group, it is every other sample.
    """
    parts = {name: group_rows(of_metric.groups, len(of_metric.samples))[start::2] for name, of_metric in scores.items()}
    return {name: scores[name].select(sorted(np.concatenate(rows).tolist())) for name, rows in parts.items()}


def division(
    scores: HeadScores, attention_metrics: Mapping[str, HeadScores], core: HeadSet, relevant: Sequence[Measurement]
) -> Finding:
    """Test whether heads divide into those that attend narrowly and those that attend broadly.

    Args:
        scores: Retrieval attention mass of the samples on which `core` was chosen.
        attention_metrics: `METRICS` and `ram` of other samples.
        core: The heads that retrieve.
        relevant: What `corelens.study.relevance` measures.
    """
    core_mask = torch.zeros_like(scores.mask)
    core_mask[[head.layer for head in core], [head.head for head in core]] = True
    other_mask = scores.mask & ~core_mask
    entropy, evidence_share, visual_share, spatial_entropy = (attention_metrics[name].values for name in METRICS)
    masses = attention_metrics["ram"].values
    strata = sources(attention_metrics["ram"])

    def group_means(values: Float[Tensor, "sample layer head"], indices: np.ndarray) -> tuple[float, float]:
        mean = values[indices].nanmean(0)
        return float(mean[core_mask].nanmean()), float(mean[other_mask].nanmean())

    def token_ratio(indices: np.ndarray) -> float:
        core_mean, other_mean = group_means(entropy, indices)
        return float(np.exp(core_mean - other_mean))

    def evidence_ratio(indices: np.ndarray) -> float:
        core_mean, other_mean = group_means(evidence_share, indices)
        return core_mean / other_mean if other_mean > 0 else math.nan

    def visual_difference(indices: np.ndarray) -> float:
        core_mean, other_mean = group_means(visual_share, indices)
        return core_mean - other_mean

    def less_scattered(indices: np.ndarray) -> float:
        # Even maps have infinite entropy, so that heads are compared by rank; none is known where all maps are empty.
        medians = spatial_entropy[indices].nanquantile(0.5, 0, interpolation="lower")
        of_core, of_others = (medians[mask & ~medians.isnan()] for mask in (core_mask, other_mask))
        less, equal = (of_core[:, None] < of_others).double(), (of_core[:, None] == of_others).double()
        return float((less + equal / 2).mean())

    def concentration_ratio(indices: np.ndarray) -> float:
        vision, core_scores = (values[indices].nanmean(0) for values in (visual_share, masses))
        return rho(vision) / rho(core_scores)

    def rank_correlation(indices: np.ndarray) -> float:
        return spearman(visual_share[indices].nanmean(0), masses[indices].nanmean(0))

    try:
        found = group_difference(scores.per_head, entropy.nanmean(0), core_mask)
        p_of_trend = found.p_value if found.difference < 0 else 1.0
    except ValueError:  # too few heads
        p_of_trend = math.nan
    mass = scores.per_head
    p_of_dip = bimodality_test(mass).p_value if scores.n_heads >= 4 and bool((mass > 0).any()) else math.nan
    return Finding(
        "Division of labour: CoRe heads attend narrowly, others broadly",
        RULE,
        (
            estimate("tokens attended to, CoRe over others", token_ratio, strata, at_most=0.5),
            estimate("visual attention on the evidence, CoRe over others", evidence_ratio, strata, at_least=2.0),
            p_value("p of entropy that the trend over the mass explains", p_of_trend, at_most=0.05),
            *relevant,
            estimate("heads that hold half, vision-head scores over mass", concentration_ratio, strata, at_least=1.0),
            estimate("rank correlation of mass and vision-head scores", rank_correlation, strata, within=(-1, 1)),
            estimate("share of attention on pictures, CoRe less others", visual_difference, strata, within=(-1, 1)),
            estimate("pairs in which the CoRe head's map is less scattered", less_scattered, strata, within=(0, 1)),
            p_value("p of one peak in the mass (dip test)", p_of_dip),
        ),
        (
            f"The CoRe heads, chosen on other samples: {core}.",
            "All of it is attention from the question's tokens. In the figures, entropy is in nats, over all tokens "
            "that a head may attend to, evidence_share is the share of its attention on pictures that is on the "
            "evidence, vision_heads its attention on all visual tokens, and spatial entropy measures how scattered its "
            "map of the picture is: infinite, and not drawn, where it is even.",
        ),
    )
