"""Claim 3, division of labour: CoRe heads look narrowly and at the evidence, others broadly."""

import math
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import mannwhitneyu
from torch import Tensor

from corelens.heads import HeadSet
from corelens.metrics import bimodality_test
from corelens.scores import HeadScores
from corelens.study.verdict import Finding, estimate, p_value

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
    chosen = torch.zeros_like(scores.mask)
    chosen[[head.layer for head in core], [head.head for head in core]] = True
    others = scores.mask & ~chosen
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
        return narrow / broad if broad > 0 else math.nan

    def share(drawn: np.ndarray) -> float:
        narrow, broad = both(visual, drawn)
        return narrow - broad

    def less_scattered(drawn: np.ndarray) -> float:
        # Even maps have infinite entropy, so that heads are compared by rank; none is known where all maps are empty.
        spatial = described["spatial_entropy"].values[drawn].nanquantile(0.5, 0, interpolation="lower")
        own, their = (spatial[heads & ~spatial.isnan()] for heads in (chosen, others))
        less, same = (own[:, None] < their).double(), (own[:, None] == their).double()
        return float((less + same / 2).mean())

    means = entropy.nanmean(0)
    p = float(mannwhitneyu(means[chosen], means[others]).pvalue)
    mass = scores.per_head
    peaks = bimodality_test(mass).p_value if scores.n_heads >= 4 and bool((mass > 0).any()) else math.nan
    return Finding(
        "Division of labour: CoRe heads look narrowly, others broadly",
        RULE,
        (
            estimate("tokens looked at, CoRe over others", fewer, strata, at_most=0.5),
            estimate("visual attention on the evidence, CoRe over others", on_evidence, strata, at_least=2.0),
            p_value("p of equal entropy", p, at_most=0.05),
            estimate("share of attention on pictures, CoRe less others", share, strata, within=(-1, 1)),
            estimate("pairs in which the CoRe head's map is less scattered", less_scattered, strata, within=(0, 1)),
            p_value("p of one peak in the mass (dip test)", peaks),
        ),
        (
            f"The CoRe heads, chosen on other samples: {core}.",
            "In the figures, entropy is in nats, over all tokens that a head can look at, vera is the share of its "
            "attention on pictures that is on the evidence, and spatial entropy says how scattered its map of the "
            "picture is: infinite, and not drawn, where it is even.",
        ),
    )
