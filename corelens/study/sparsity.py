"""Claim 1, sparsity: few heads hold most of the retrieval attention mass."""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from corelens.metrics import Metric, lorenz_curve, rho
from corelens.metrics.score_distribution import head_count
from corelens.scores import HeadScores
from corelens.study.verdict import Finding, estimate

EXCESS = Metric(
    "ram_excess",
    "retrieval attention mass above an even look",
    normalisation="rest",
    source="Retrieval attention mass, less what the head would put on the evidence if it looked at it as at the rest "
    "of the picture: the contrast of LOCOS (arXiv 2607.01002). Inferred.",
)

ENOUGH = 20
"""Heads; of fewer, the top 5 % are not even one."""

RULE = (
    "There are 20 heads or more. Half of the mass is held by at most 10 % of them (MMRetHeads finds 4 to 10 %); the "
    "top 5 % hold at least twice what they hold if every sample's heads are shuffled, and at least twice what they "
    "hold in an untrained model of the same configuration. Mass is counted above an even look, since a head that looks "
    "evenly at everything puts mass on the evidence, too. The paper's numbers are not public: thresholds are inferred."
)


def sparsity(scores: HeadScores, untrained: HeadScores) -> Finding:
    """Whether few heads hold most of it.

    Args:
        scores: By `EXCESS`.
        untrained: The same of a model of the same configuration with random weights.
    """
    values, null = (one.values[:, one.mask] for one in (scores, untrained))
    flat, random = values[:, None], null[:, None]  # as one layer of all heads
    strata = scores.datasets or ("",) * len(values)

    def over_shuffled(chosen: np.ndarray) -> float:
        generator = torch.Generator().manual_seed(int(chosen.sum()))
        return _held(flat[chosen]) / float(np.mean([_held(shuffled(flat[chosen], generator)) for _ in range(5)]))

    def over_untrained(chosen: np.ndarray) -> float:
        return _held(flat[chosen]) / _held(random[chosen % len(random)])

    most, least = (0.1, 2.0) if scores.n_heads >= ENOUGH else (None, None)
    return Finding(
        "Sparsity: few heads hold most of the retrieval attention mass",
        RULE,
        (
            estimate(
                "share of heads that hold half of the mass above an even look",
                lambda i: _rho(flat[i]),
                strata,
                at_most=most,
            ),
            estimate("held by the top 5 %, over shuffled heads", over_shuffled, strata, at_least=least),
            estimate("held by the top 5 %, over an untrained model", over_untrained, strata, at_least=least),
            estimate("held by the top 5 %", lambda i: _held(flat[i]), strata, within=(0, 1)),
            estimate("Gini coefficient", lambda i: _gini(flat[i]), strata, within=(0, 1)),
        ),
        (f"{scores.n_heads} heads, {len(values)} samples.",),
    )


def shuffled(
    values: Float[Tensor, "sample layer head"], generator: torch.Generator
) -> Float[Tensor, "sample layer head"]:
    """Every sample's scores, given to heads at random: as concentrated in a sample, but no head is always the best."""
    flat = values.flatten(1)
    order = torch.rand(flat.shape, generator=generator).argsort(1)
    return flat.gather(1, order).view_as(values)


def _held(values: Float[Tensor, "sample layer head"]) -> float:
    mean = values.nanmean(0)
    return float(lorenz_curve(mean)[head_count(0.05, mean.numel())]) if _any(mean) else math.nan


def _rho(values: Float[Tensor, "sample layer head"]) -> float:
    mean = values.nanmean(0)
    return rho(mean, 0.5) if _any(mean) else math.nan


def _any(mean: Float[Tensor, "layer head"]) -> bool:
    """Whether there is anything to hold."""
    return bool((mean > 0).any())


def _gini(values: Float[Tensor, "sample layer head"]) -> float:
    """Twice the area between the Lorenz curve and that of heads which all hold alike."""
    mean = values.nanmean(0)
    if not _any(mean):
        return math.nan
    held = lorenz_curve(mean)
    return 2 * float(torch.trapezoid(held, dx=1 / (len(held) - 1))) - 1
