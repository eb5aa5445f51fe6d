"""Distribution of scores over heads and layers: Lorenz curve, elbow, two groups, depth."""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from scipy.stats import norm, rankdata
from scipy.stats import t as student_t
from torch import Tensor

from corelens.metrics.aggregation import full_precision
from corelens.metrics.dip_test import dip_test

Amount = float | int | np.number | Tensor
"""A number of heads if it is an integer, of Python, numpy or torch; a share of them if it is a float."""


def plain_amount(n: Amount) -> float | int:
    """Return a number or share of heads as Python's own `int` or `float`, whatever library it is of.

    Raises:
        TypeError: If it is no number.

    Examples:
        >>> plain_amount(np.int64(5)), plain_amount(torch.tensor(0.5))
        (5, 0.5)
    """
    plain = n.item() if isinstance(n, np.generic | Tensor) and n.ndim == 0 else n
    if isinstance(plain, bool) or not isinstance(plain, float | int):
        raise TypeError(f"n={n!r} is no number; give a number of heads, such as 5, or a share of them, such as 0.05.")
    return plain


def lorenz_curve(scores: Float[Tensor, "layer head"]) -> Float[Tensor, "head_number"]:
    """Share of the positive scores that the n highest heads hold, for n from zero to all heads.

    NaN, where there is no head, is left out; negative scores, which a baseline can cause, count as zero.

    Examples:
        >>> lorenz_curve(torch.tensor([[1.0, 3.0]]))
        tensor([0.0000, 0.7500, 1.0000])
    """
    ordered = full_precision(scores[~scores.isnan()]).clamp(min=0).sort(descending=True).values
    if not len(ordered) or ordered[0] <= 0:
        raise ValueError("no head has a positive score, so none holds a share of the scores.")
    return torch.cat([ordered.new_zeros(1), ordered.cumsum(0) / ordered.sum()])


def rho(scores: Float[Tensor, "layer head"], share: float = 0.5) -> float:
    """Smallest share of heads that together hold a share of the positive scores.

    Source:
        MMRetHeads (arXiv 2605.27243), there `rho_0.5` of calibrated scores: 0.04 to 0.10.
    """
    return n_heads_with_share(scores, share) / int((~scores.isnan()).sum())


def elbow(scores: Float[Tensor, "*shape"]) -> int:
    """Number of scores before the elbow, the point of the sorted curve that is farthest from its chord.

    Source:
        Localization heads (arXiv 2503.06287) cut at the point of maximum curvature; ours is the usual discrete form of
        it (Satopaa et al. 2011, "Kneedle").
    """
    ordered = scores[~scores.isnan()].flatten().sort(descending=True).values
    if len(ordered) < 3 or ordered[0] == ordered[-1]:
        raise ValueError("there is no elbow: it needs three scores that are not all the same.")
    height = (ordered - ordered[-1]) / (ordered[0] - ordered[-1])
    rank = torch.linspace(0, 1, len(ordered), device=ordered.device)
    return max(1, int((height + rank).argmin()))


def localization_heads(
    visual_share: Float[Tensor, "sample layer head"],
    spatial_entropy: Float[Tensor, "sample layer head"],
    n: int = 10,
) -> Bool[Tensor, "sample layer head"]:
    """Mask of the localization heads of each sample: of the visual heads, the n with the lowest spatial entropy.

    Visual heads are those whose attention on visual tokens, averaged over samples, lies before the elbow of all heads'.
    The mean of the mask over samples is the selection frequency that the authors rank by.

    Args:
        visual_share: Attention on all visual tokens from the last prompt token.
        spatial_entropy: Spatial entropy of each head's attention on the picture (`spatial_entropy`).
        n: Number of heads per sample.

    Source:
        Localization heads (arXiv 2503.06287). Theirs also leaves out maps whose mass lies in the bottom row of the
        picture; set their entropy to infinity to do the same. Their code compares a head's index with the elbow, ours
        its attention.
    """
    if n < 1:
        raise ValueError(f"n={n} is less than one head.")
    mean = visual_share.nanmean(0)
    visual_attention = torch.where(mean.isnan(), -torch.inf, mean)
    threshold = visual_attention.flatten().sort(descending=True).values[elbow(mean) - 1]
    entropy = torch.where((visual_attention >= threshold) & spatial_entropy.isfinite(), spatial_entropy, torch.inf)
    flat = rearrange(entropy, "sample layer head -> sample (layer head)")
    order = flat.argsort(dim=-1, stable=True)[:, :n]
    mask = torch.zeros_like(flat, dtype=torch.bool).scatter_(-1, order, True) & flat.isfinite()
    return mask.view_as(entropy)


class Bimodality(NamedTuple):
    """Result of a test for two groups of scores, and the threshold between these."""

    dip: float
    """Distance of the scores' distribution from the nearest one with one peak (Hartigan and Hartigan 1985)."""

    p_value: float
    """Probability of such a dip, or a larger one, if there were one peak. A small one means two groups or more."""

    threshold: float
    """Score at which two fitted groups meet; meaningless unless the p-value is small."""

    upper_share: float
    """Share of heads above the threshold."""


def bimodality_test(scores: Float[Tensor, "layer head"]) -> Bimodality:
    """Test whether heads fall into a retrieving and a broad group, or form one continuum.

    Masses span orders of magnitude, so where all scores are positive, their logarithm is tested. Scores of which some
    are zero or negative, as calibrated ones are, are tested as they are. The dip test is for more than one peak of the
    distribution; a mixture of two normal distributions gives the threshold between the groups.

    Args:
        scores: One number per head, e.g. retrieval attention mass; NaN where there is no head.

    Raises:
        ValueError: If fewer than four heads have a score, or all have the same.

    Source:
        The division is claimed by arXiv 2606.05843; the authors' test is not known. This test is corelens's own.
    """
    existing = scores[~scores.isnan()].double().flatten().cpu()
    if (n_values := len(existing.unique())) < 2 or len(existing) < 4:
        raise ValueError(
            f"{len(existing)} heads have {n_values} different scores: groups need four heads, and scores that differ."
        )
    # Moved onto the smallest positive one, the others would be a group of their own.
    in_logs = bool((existing > 0).all())
    values = (existing.log() if in_logs else existing).numpy()
    dip, p_value = dip_test(values)
    try:
        from sklearn.mixture import GaussianMixture
    except ModuleNotFoundError as cause:
        message = f"{cause.name} is not installed: pip install 'corelens[app]'."
        raise ModuleNotFoundError(message, name=cause.name) from cause
    mixture: Any = GaussianMixture(2, n_init=5, random_state=0).fit(values[:, None])
    low, high = np.sort(mixture.means_[:, 0])
    upper_group = int(mixture.means_[:, 0].argmax())
    grid = np.linspace(low, high, 1_000)
    upper_probability = mixture.predict_proba(grid[:, None])[:, upper_group]
    threshold = float(grid[np.abs(upper_probability - 0.5).argmin()])
    upper_share = float((values > threshold).mean())
    return Bimodality(dip, p_value, float(np.exp(threshold)) if in_logs else threshold, upper_share)


class GroupDifference(NamedTuple):
    """Difference between a group of heads and others beyond what a trend over their scores explains."""

    difference: float
    """Group over others, in standard deviations of a normal distribution that has the measure's ranks."""

    p_value: float
    """Probability of such a difference, or a larger one of either sign, if the trend explained all."""


def group_difference(
    scores: Float[Tensor, "layer head"], measure: Float[Tensor, "layer head"], group: Bool[Tensor, "layer head"]
) -> GroupDifference:
    """Test whether heads that were chosen by a score form a group, or the end of a continuum.

    Heads with the highest scores differ from others in whatever changes with the score, so that such a difference alone
    says nothing of groups. Here the measure's trend over the score, among all heads of the upper half, is continued to
    the group, which must lie beyond it: an analysis of covariance. Both are replaced by normal quantiles of their
    ranks, so that neither's scale or skew matters, and the lower half is left out, where the trend may be another. That
    scores are noisy does no harm, as long as they are the ones that the heads were chosen by.

    Args:
        scores: The score that the heads were chosen by.
        measure: What may differ, from other samples; a head with NaN, which has no value, is left out.
        group: True for the chosen heads.

    Raises:
        ValueError: If fewer than two heads of the upper half are in the group, or fewer than three outside of it.

    Source:
        corelens's own.
    """
    known = ~(scores.isnan() | measure.isnan())
    is_member = group[known].cpu().numpy()
    score_quantiles, measure_quantiles = (
        _normal_quantiles(values[known].cpu().numpy()) for values in (scores, measure)
    )
    kept = is_member | (score_quantiles >= 0)
    n_members, n_others = int(is_member.sum()), int((kept & ~is_member).sum())
    if n_members < 2 or n_others < 3:
        raise ValueError(f"{n_members} heads cannot be compared with {n_others}: it needs two, and three others.")
    columns = np.stack([np.ones(kept.sum()), score_quantiles[kept], is_member[kept]], axis=1)
    coefficients = np.linalg.lstsq(columns, measure_quantiles[kept])[0]
    residuals = measure_quantiles[kept] - columns @ coefficients
    degrees_of_freedom = len(columns) - 3
    variance = residuals @ residuals / degrees_of_freedom * np.linalg.pinv(columns.T @ columns)[2, 2]
    statistic = coefficients[2] / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, coefficients[2])
    return GroupDifference(float(coefficients[2]), float(2 * student_t.sf(abs(statistic), degrees_of_freedom)))


def _normal_quantiles(values: Float[np.ndarray, "head"]) -> Float[np.ndarray, "head"]:
    """Quantiles of a normal distribution in place of values of the same ranks."""
    return norm.ppf((rankdata(values) - 0.5) / len(values))


class DepthProfile(NamedTuple):
    """Scores by relative depth."""

    depth: Float[Tensor, "layer"]
    """Relative depth: zero for the first layer, one for the last, so that models of different depth can be compared."""

    mean: Float[Tensor, "layer"]
    """Mean score of the layer's heads; NaN for a layer without heads."""

    share: Float[Tensor, "layer"]
    """Share of all positive scores that the layer holds."""

    centre: float
    """Mean depth, weighted by the positive scores."""


def depth_profile(scores: Float[Tensor, "layer head"]) -> DepthProfile:
    """Compute the distribution of scores over the depth of the model."""
    scores = full_precision(scores)
    n_layers, n_heads = scores.shape
    depth = torch.linspace(0, 1, n_layers) if n_layers > 1 else torch.zeros(1)
    mass = scores.nan_to_num().clamp(min=0).cpu()
    if mass.sum() <= 0:
        raise ValueError("no head has a positive score, so their mean depth is undefined.")
    centre = (repeat(depth, "layer -> layer head", head=n_heads) * mass).sum() / mass.sum()
    return DepthProfile(depth, scores.nanmean(1).cpu(), mass.sum(1) / mass.sum(), float(centre))


def head_count(fraction: float, n_heads: int) -> int:
    """Number of heads that a fraction is, rounded up: five percent of 96 heads are five.

    Raises:
        ValueError: If the fraction is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction} is outside (0, 1]; 0.05 means five percent of all heads.")
    # Rounding first: 0.07 * 100 is 7.000000000000001 in floating point, and seven heads are meant; more in float32.
    return math.ceil(round(fraction * n_heads, 5))


def n_heads_with_share(scores: Float[Tensor, "layer head"], share: float) -> int:
    """Smallest number of heads that together hold a share of the positive scores."""
    if not 0 < share <= 1:
        raise ValueError(f"share={share} is outside (0, 1].")
    reaches_share = lorenz_curve(scores) >= share - 1e-6
    return int(reaches_share.to(torch.uint8).argmax())
