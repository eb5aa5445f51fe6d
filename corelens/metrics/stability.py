"""How sure a ranking of heads is, and how far two rankings agree."""

from collections.abc import Sequence, Set
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor

from corelens.metrics.selection import count_of


class Interval(NamedTuple):
    """A confidence interval for every head."""

    low: Float[Tensor, "layer head"]
    high: Float[Tensor, "layer head"]


def bootstrap_interval(
    values: Float[Tensor, "sample layer head"], level: float = 0.95, n_draws: int = 2_000, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval of each head's mean over samples; samples are drawn with replacement."""
    if not 0 < level < 1:
        raise ValueError(f"level={level} is outside (0, 1).")
    n, flat = len(values), values.flatten(1).double()
    generator = torch.Generator().manual_seed(seed)
    known = (~flat.isnan()).double()
    # How often each sample is drawn; a mean of draws is then a product of matrices.
    drawn = torch.stack(
        [torch.bincount(torch.randint(n, (n,), generator=generator), minlength=n) for _ in range(n_draws)]
    ).double()
    means = (drawn @ flat.nan_to_num()) / (drawn @ known)
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.double)
    low, high = means.nanquantile(tails, 0).to(values).unflatten(1, values.shape[1:])
    return Interval(low, high)


class Stability(NamedTuple):
    """How much of the top set two disjoint halves of the samples share, by the number of samples in a half."""

    n_samples: tuple[int, ...]
    mean: Float[np.ndarray, "size"]
    low: Float[np.ndarray, "size"]
    """The 5th percentile over splits."""
    high: Float[np.ndarray, "size"]
    """The 95th percentile over splits."""


def stability_curve(
    values: Float[Tensor, "sample layer head"], fraction: float = 0.05, n_splits: int = 100, seed: int = 0
) -> Stability:
    """Overlap of the top heads of disjoint random subsets of equal size, from one sample to half of all.

    The overlap is the share of one top set that is in the other: one if the samples do not matter, and about
    `fraction` by chance.

    Raises:
        ValueError: If there are fewer than two samples.
    """
    n = len(values)
    if n < 2:
        raise ValueError(f"{n} sample cannot be split; a stability curve needs two or more.")
    sizes = sorted({int(size) for size in np.geomspace(1, n // 2, 12).round()})
    rng = np.random.default_rng(seed)
    overlaps = np.empty((n_splits, len(sizes)))
    for split in range(n_splits):
        order = torch.from_numpy(rng.permutation(n))
        for column, size in enumerate(sizes):
            halves = [top_heads(values[order[part]].nanmean(0), fraction) for part in (slice(size), slice(-size, None))]
            overlaps[split, column] = len(halves[0] & halves[1]) / len(halves[0])
    return Stability(tuple(sizes), overlaps.mean(0), *np.quantile(overlaps, [0.05, 0.95], axis=0))


def top_heads(scores: Float[Tensor, "layer head"], fraction: float) -> set[tuple[int, int]]:
    """Layer and number of the highest heads; ties in order of layer and head."""
    n = count_of(fraction, int((~scores.isnan()).sum()))
    order = torch.where(scores.isnan(), -torch.inf, scores).flatten().argsort(descending=True, stable=True)[:n]
    return {divmod(index, scores.shape[1]) for index in order.tolist()}


def jaccard(one: Set[object], other: Set[object]) -> float:
    """Share of the heads in either set that are in both; one if both are empty."""
    return len(one & other) / len(one | other) if one | other else 1.0


def spearman(one: Float[Tensor, "layer head"], other: Float[Tensor, "layer head"]) -> float:
    """Rank correlation of two scores over the heads that both have."""
    both = ~(one.isnan() | other.isnan())
    return float(np.corrcoef(rankdata(one[both].cpu()), rankdata(other[both].cpu()))[0, 1])


def rank_biased_overlap(one: Sequence[object], other: Sequence[object], persistence: float = 0.95) -> float:
    r"""Agreement of two rankings that cares most about their tops, in [0, 1].

    $$\mathrm{RBO} = (1 - p) \sum_{d \ge 1} p^{d-1} A_d$$, where A_d is the shared part of the first d heads. The
    agreement at the end of the lists goes on for ever, so that equal rankings score one.

    Args:
        one: Heads, best first.
        other: As many heads, best first.
        persistence: p; the top 1 / (1 - p) heads carry most of the weight: 20 by default.

    Source:
        Webber, Moffat and Zobel 2010, equation 32 (RBO_ext) for lists of one length.
    """
    if len(one) != len(other) or not one:
        raise ValueError(
            f"rankings of {len(one)} and {len(other)} heads cannot be compared; both need the same length."
        )
    seen_one: set[object] = set()
    seen_other: set[object] = set()
    total, agreement = 0.0, 0.0
    for depth, (a, b) in enumerate(zip(one, other, strict=True), start=1):
        seen_one.add(a)
        seen_other.add(b)
        agreement = len(seen_one & seen_other) / depth
        total += persistence ** (depth - 1) * agreement
    return (1 - persistence) * total + persistence ** len(one) * agreement
