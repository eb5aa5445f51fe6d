"""Claim 3, division of labour: CoRe heads look narrowly and at the evidence, others broadly."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import mannwhitneyu
from torch import Tensor

from corelens.heads import HeadSet
from corelens.metrics import two_groups
from corelens.scores import HeadScores
from corelens.study.finding import Finding, estimate, p_value

MEASURES = ("entropy", "vera", "visual_share", "spatial_entropy")

RULE = (
    "The top 5 % of heads, chosen on half of the samples, look in the other half at no more than half as many tokens "
    "as other heads do (exponential of the difference in mean entropy), put at least twice as large a share of their "
    "visual attention on the evidence, and differ in entropy by a Mann-Whitney test over heads (p <= .05). Intervals "
    "are over samples. The dip test for two peaks is reported and not in the rule: a group of 5 % is too small a peak "
    "for it in models of few heads. Inferred."
)


def division(scores: HeadScores, described: Mapping[str, HeadScores], core: HeadSet) -> Finding:
    """Whether heads fall into those that look narrowly and those that look broadly.

    Args:
        scores: Retrieval attention mass.
        described: `MEASURES` of the samples on which `core` was not chosen.
        core: The heads that retrieve.
    """
    chosen = torch.zeros_like(scores.exist)
    chosen[[head.layer for head in core], [head.head for head in core]] = True
    others = scores.exist & ~chosen
    entropy, located, visual = (described[name].values for name in MEASURES[:3])
    strata = described["entropy"].datasets or ("",) * len(entropy)

    def both(values: Float[Tensor, "sample layer head"], drawn: np.ndarray) -> tuple[float, float]:
        mean = values[drawn].nanmean(0)
        return float(mean[chosen].nanmean()), float(mean[others].nanmean())

    def fewer(drawn: np.ndarray) -> float:
        narrow, broad = both(entropy, drawn)
        return float(np.exp(narrow - broad))

    def on_evidence(drawn: np.ndarray) -> float:
        narrow, broad = both(located, drawn)
        return narrow / broad

    def share(drawn: np.ndarray) -> float:
        narrow, broad = both(visual, drawn)
        return narrow - broad

    # Even maps have infinite entropy, so that heads are compared by rank; none is known where all maps are empty.
    spatial = described["spatial_entropy"].values.nanquantile(0.5, 0, interpolation="lower")
    less = mannwhitneyu(spatial[others & ~spatial.isnan()], spatial[chosen & ~spatial.isnan()]).statistic
    pairs = int((others & ~spatial.isnan()).sum() * (chosen & ~spatial.isnan()).sum())
    means = entropy.nanmean(0)
    p = float(mannwhitneyu(means[chosen], means[others]).pvalue)
    groups = two_groups(scores.per_head)
    return Finding(
        "Division of labour: CoRe heads look narrowly, others broadly",
        RULE,
        (
            estimate("tokens looked at, CoRe over others", fewer, strata, at_most=0.5),
            estimate("visual attention on the evidence, CoRe over others", on_evidence, strata, at_least=2.0),
            p_value("p of equal entropy", p, at_most=0.05),
            estimate("share of attention on pictures, CoRe less others", share, strata),
            p_value("p of one peak in the mass (dip test)", groups.p_value),
        ),
        (
            f"Of pairs of a CoRe and another head, the CoRe head's map of the picture is less scattered in "
            f"{float(less) / max(pairs, 1):.0%} (spatial entropy).",
            f"The CoRe heads, chosen on other samples: {core}.",
            "In the figure, entropy is in nats, over all tokens that a head can look at, and vera the share of its "
            "attention on pictures that is on the evidence.",
        ),
    )
