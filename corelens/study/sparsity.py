"""Claim 1, sparsity: few heads hold most of the retrieval attention mass."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from corelens.metrics import Metric, lorenz_curve, rho
from corelens.metrics.score_distribution import head_count
from corelens.scores import HeadScores
from corelens.study import relevance
from corelens.study.verdict import Finding, Measurement, estimate, sources

EXCESS = Metric(
    "ram_excess",
    "retrieval attention mass above uniform attention",
    normalisation="rest",
    source="Retrieval attention mass, less the mass that the head would put on the evidence if it attended to it as to "
    "the rest of the picture: the contrast of LOCOS (arXiv 2607.01002). corelens's own.",
)

MIN_HEADS = 20
"""Fewest heads that the rule applies to; of fewer, the top 5 % are less than one head."""

RULE = (
    "Premise: there are 20 heads or more. Half of the mass is held by at most 10 % of them (MMRetHeads finds 4 to 10 "
    "%); the top 5 % hold at least twice what they hold if every sample's heads are shuffled, and at least twice what "
    "they hold in untrained models of the same configuration, with an interval over these, too. Mass is counted above "
    "uniform attention, since a head that attends evenly to everything puts mass on the evidence, too. "
    f"{relevance.RULE} The paper shows heat maps and no number of this kind; the rule is corelens's own."
)


def sparsity(scores: HeadScores, untrained: Sequence[HeadScores], relevant: Sequence[Measurement]) -> Finding:
    """Test whether few heads hold most of the mass.

    Args:
        scores: Scores by `EXCESS`.
        untrained: The same of models of the same configuration, each with other random weights.
        relevant: What `corelens.study.relevance` measures.
    """
    # As one layer of all heads.
    flat, *flat_untrained = (heads.values[:, None, heads.mask] for heads in (scores, *untrained))
    n_samples = len(flat)
    strata = sources(scores)

    def over_shuffled(indices: np.ndarray) -> float:
        generator = torch.Generator().manual_seed(int(indices.sum()))
        shuffled_shares = [_top_share(shuffled(flat[indices], generator)) for _ in range(5)]
        return _top_share(flat[indices]) / float(np.mean(shuffled_shares))

    def over_untrained(indices: np.ndarray) -> float:
        rows, models = indices[indices < n_samples], indices[indices >= n_samples] - n_samples
        shares = [_top_share(flat_untrained[model][rows % len(flat_untrained[model])]) for model in models]
        return _top_share(flat[rows]) / float(np.mean(shares))

    n_heads = scores.n_heads
    return Finding(
        "Sparsity: few heads hold most of the retrieval attention mass",
        RULE,
        (
            Measurement("number of heads", n_heads, n_heads, n_heads, MIN_HEADS, of_premise=True),
            estimate(
                "share of heads that hold half of the mass above uniform attention",
                lambda indices: _rho(flat[indices]),
                strata,
                at_most=0.1,
            ),
            estimate("held by the top 5 %, over shuffled heads", over_shuffled, strata, at_least=2.0),
            estimate(
                "held by the top 5 %, over untrained models",
                over_untrained,
                # Untrained models are drawn with replacement, as samples are.
                [*strata, *[None] * len(untrained)],
                at_least=2.0,
            ),
            *relevant,
            estimate("held by the top 5 %", lambda indices: _top_share(flat[indices]), strata, within=(0, 1)),
            estimate("Gini coefficient", lambda indices: _gini(flat[indices]), strata, within=(0, 1)),
        ),
        (f"{n_heads} heads, {n_samples} samples, {len(untrained)} untrained models.",),
    )


def shuffled(
    values: Float[Tensor, "sample layer head"], generator: torch.Generator
) -> Float[Tensor, "sample layer head"]:
    """Permute every sample's scores over heads: as concentrated in a sample, but no head is always the best."""
    flat = values.flatten(1)
    order = torch.rand(flat.shape, generator=generator).argsort(1)
    return flat.gather(1, order).view_as(values)


def _top_share(values: Float[Tensor, "sample layer head"]) -> float:
    """Share of the mass that the top 5 % of heads hold; NaN without any mass."""
    mean = values.nanmean(0)
    return float(lorenz_curve(mean)[head_count(0.05, mean.numel())]) if _has_mass(mean) else math.nan


def _rho(values: Float[Tensor, "sample layer head"]) -> float:
    """Share of heads that hold half of the mass; NaN without any mass."""
    mean = values.nanmean(0)
    return rho(mean, 0.5) if _has_mass(mean) else math.nan


def _gini(values: Float[Tensor, "sample layer head"]) -> float:
    """Gini coefficient: twice the area between the Lorenz curve and that of equal heads; NaN without any mass."""
    mean = values.nanmean(0)
    if not _has_mass(mean):
        return math.nan
    curve = lorenz_curve(mean)
    return 2 * float(torch.trapezoid(curve, dx=1 / (len(curve) - 1))) - 1


def _has_mass(mean: Float[Tensor, "layer head"]) -> bool:
    return bool((mean > 0).any())
