"""Groups of samples that use different heads: a mean over all samples hides them."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from corelens.metrics.dip_test import dip_test


class SampleGroups(NamedTuple):
    """Two groups of samples, and a test of whether there are two."""

    p_value: float
    """Dip test of one peak; small where the samples fall apart."""

    first: Bool[Tensor, "sample"]
    """True for samples of the first group, which has the first sample."""


def sample_groups(values: Float[Tensor, "sample layer head"]) -> SampleGroups:
    """Split samples in two by the heads that score high on them, and test whether they are two groups.

    The scores of a sample are a point in a space of heads, each divided by the sample's own total. Samples are placed
    along the direction in which they differ most (the first principal component); two peaks there are two groups.

    Args:
        values: Scores of every sample and head; heads that lack a score in some sample are left out.

    Raises:
        ValueError: If there are fewer than eight samples, or no head has a score in all of them.

    Source:
        corelens's own. Dip test of Hartigan and Hartigan 1985.
    """
    points = values.flatten(1).double().cpu()
    points = points[:, points.isfinite().all(0)]
    if len(points) < 8 or not points.shape[1]:
        raise ValueError(
            f"{len(points)} samples and {points.shape[1]} heads with a score in all: too few to test for groups."
        )
    points = points / points.abs().sum(1, keepdim=True).clamp(min=1e-12)
    _, _, directions = torch.linalg.svd(points - points.mean(0), full_matrices=False)
    place = ((points - points.mean(0)) @ directions[0]).numpy()
    _, p_value = dip_test(place)
    # The cut that leaves the least variance within both groups.
    ordered = np.sort(place)
    n = np.arange(1, len(ordered))
    sums, total = np.cumsum(ordered)[:-1], ordered.sum()
    between = (sums - n * total / len(ordered)) ** 2 / (n * (len(ordered) - n))
    above = torch.from_numpy(place > ordered[between.argmax()])
    return SampleGroups(p_value, above == above[0])
