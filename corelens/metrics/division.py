"""Whether heads fall into groups, and where in the model's depth the scores lie."""

from typing import Any, NamedTuple

import numpy as np
import torch
from diptest import diptest
from einops import repeat
from jaxtyping import Float
from sklearn.mixture import GaussianMixture
from torch import Tensor


class Division(NamedTuple):
    """Whether scores fall into two groups."""

    dip: float
    """Distance of the scores' distribution from the nearest one with a single peak (Hartigan and Hartigan 1985)."""

    p_value: float
    """Chance of such a dip, or a larger one, if there were one peak. Small: there are two groups or more."""

    threshold: float
    """Where two fitted groups meet; meaningless unless the p-value is small."""

    upper_share: float
    """Share of heads above the threshold."""


def two_groups(scores: Float[Tensor, "layer head"]) -> Division:
    """Tests whether heads fall into a retrieving and a broad group, or form one continuum.

    Scores span orders of magnitude, so their logarithm is tested. The dip test asks whether the distribution has more
    than one peak; a mixture of two normal distributions says where they part.

    Args:
        scores: One number per head, e.g. retrieval attention mass; NaN where there is no head. Zero and negative
            scores are taken as the smallest positive one.

    Raises:
        ValueError: If fewer than four heads have a score, or none a positive one.

    Source:
        The division is claimed by arXiv 2606.05843; how the authors tested it is not known. This test is corelens's.
    """
    known = scores[~scores.isnan()].double().flatten().cpu()
    positive = known[known > 0]
    if len(known) < 4 or not len(positive):
        raise ValueError(f"{len(positive)} of {len(known)} scores are positive: too few to look for groups.")
    logs = known.clamp(min=float(positive.min())).log().numpy()
    # Any: the package does not say that it returns a pair.
    tested: Any = diptest(logs)
    mixture: Any = GaussianMixture(2, n_init=5, random_state=0).fit(logs[:, None])
    low, high = np.sort(mixture.means_[:, 0])
    upper = int(mixture.means_[:, 0].argmax())
    grid = np.linspace(low, high, 1_000)
    chance = mixture.predict_proba(grid[:, None])[:, upper]
    threshold = float(grid[np.abs(chance - 0.5).argmin()])
    return Division(float(tested[0]), float(tested[1]), float(np.exp(threshold)), float((logs > threshold).mean()))


class DepthProfile(NamedTuple):
    """Scores by relative depth."""

    depth: Float[Tensor, "layer"]
    """Zero for the first layer, one for the last, so that models of different depth can be compared."""

    mean: Float[Tensor, "layer"]
    """Mean score of the layer's heads; NaN for a layer without heads."""

    share: Float[Tensor, "layer"]
    """Share of all positive scores that the layer holds."""

    centre: float
    """Mean depth, weighted by the positive scores."""


def depth_profile(scores: Float[Tensor, "layer head"]) -> DepthProfile:
    """Where in the model's depth the scores lie."""
    n_layers, n_heads = scores.shape
    depth = torch.linspace(0, 1, n_layers) if n_layers > 1 else torch.zeros(1)
    mass = scores.nan_to_num().clamp(min=0).cpu()
    if mass.sum() <= 0:
        raise ValueError("no head has a positive score, so there is no depth to speak of.")
    centre = (repeat(depth, "layer -> layer head", head=n_heads) * mass).sum() / mass.sum()
    return DepthProfile(depth, scores.nanmean(1).cpu(), mass.sum(1) / mass.sum(), float(centre))
