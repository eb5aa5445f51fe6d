"""Intervals of means over samples by the bootstrap, which draws samples again, in the groups that they came in.

Questions about one picture are not independent: drawn one by one they would count as more than they are. So pictures
(documents, videos) are drawn, each with all of its samples. Where every sample is a group of its own, this is the
ordinary bootstrap.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.stats import norm, t
from torch import Tensor

from corelens.metrics.aggregation import dataset_rows


class Interval(NamedTuple):
    """A confidence interval for every head."""

    low: Float[Tensor, "layer head"]
    high: Float[Tensor, "layer head"]


def bootstrap_interval(
    values: Float[Tensor, "sample layer head"],
    level: float = 0.95,
    n_draws: int = 2_000,
    seed: int = 0,
    groups: Sequence[object] = (),
    datasets: Sequence[str] = (),
) -> Interval:
    """Percentile bootstrap interval of each head's mean over samples, for a head that was named beforehand.

    Of heads that these samples chose, such as the highest, the means are too high, and these intervals with them:
    `simultaneous_interval` holds for all heads at once. Where every value is zero or one, two more groups are drawn
    from, as `bootstrap_means` says. NaN for a head with scores in fewer than two groups: one says nothing of others.

    Args:
        values: Scores; NaN where a head has none.
        level: Share of experiments in which the interval of a head holds its mean.
        n_draws: Number of draws.
        seed: Seed of the draws.
        groups: Group of each sample, such as its picture, which are drawn whole; each is its own if there are none.
        datasets: Data set of each sample, for the mean of the means of data sets; one for all by default.

    Raises:
        ValueError: If `level` is not between zero and one.
    """
    means = _checked_means(values, level, n_draws, seed, groups, datasets)
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.double)
    low, high = means.nanquantile(tails, 0).to(values)
    known = _n_groups(values, groups, datasets) >= 2
    return Interval(low.where(known, torch.nan), high.where(known, torch.nan))


def simultaneous_interval(
    values: Float[Tensor, "sample layer head"],
    level: float = 0.95,
    n_draws: int = 2_000,
    seed: int = 0,
    groups: Sequence[object] = (),
    datasets: Sequence[str] = (),
) -> Interval:
    r"""Intervals that hold the means of all heads at once, and so that of whichever head the samples choose.

    $$\bar x_h \pm c\, s_h$$, where s is the standard deviation of a head's mean over draws, and c the quantile over
    draws of the largest $|\bar x^*_h - \bar x_h| / s_h$ of any head (max-t). The best of a hundred heads is partly the
    luckiest: of an interval of its own, its true mean is often below. Where scores are very skewed and samples few, the
    intervals of all heads hold together less often than `level`; in simulations that of the highest held as often.

    Arguments, and heads without an interval, are those of `bootstrap_interval`; `level` is the share of experiments in
    which every interval holds. Of few groups, c is that of Student's t with as many degrees of freedom as there are
    groups less one.

    Source:
        Westfall and Young 1993, chapter 2; Mandel and Betensky 2008 for the bootstrap.

    Raises:
        ValueError: If `level` is not between zero and one.
    """
    means = _checked_means(values, level, n_draws, seed, groups, datasets)
    n_groups = _n_groups(values, groups, datasets)
    centre = means.nanmean(0)
    deviations = means - centre
    # A resample of few groups varies less than the mean of as many does.
    spread = deviations.square().nanmean(0).sqrt() * (n_groups / (n_groups - 1).clamp(min=1)).sqrt()
    # Zero for heads that do not vary, or have no score.
    largest = (deviations.abs() / spread).nan_to_num(0, 0).flatten(1).amax(1)
    normal = float(largest.quantile(level))
    width = spread * torch.from_numpy(t.isf(norm.sf(normal), (n_groups - 1).clamp(min=1).numpy()))
    known = n_groups >= 2
    low, high = (bound.to(values).where(known, torch.nan) for bound in (centre - width, centre + width))
    return Interval(low, high)


def _checked_means(
    values: Float[Tensor, "sample layer head"],
    level: float,
    n_draws: int,
    seed: int,
    groups: Sequence[object],
    datasets: Sequence[str],
) -> Float[Tensor, "draw layer head"]:
    if not 0 < level < 1:
        raise ValueError(f"level={level} is outside (0, 1).")
    is_outcome = bool(((values == 0) | (values == 1) | values.isnan()).all())
    rng = np.random.default_rng(seed)
    return bootstrap_means(values, n_draws, rng, (0, 1) if is_outcome else None, groups, datasets)


def bootstrap_means(
    values: Float[Tensor, "sample *shape"],
    n_draws: int,
    rng: np.random.Generator,
    extremes: tuple[float | int, float | int] | None = None,
    groups: Sequence[object] = (),
    datasets: Sequence[str] = (),
) -> Float[Tensor, "draw *shape"]:
    """Means of as many groups of samples as there are, drawn with replacement from these and two more at the extremes.

    Twenty equal samples of twenty do not prove that all others are equal, and an interval from these alone has no
    width; of rare losses, it misses the true share far more often than it says. With the two, a 95 % interval of a
    share holds it in 93 % of experiments or more, and is wider than it need be where few samples differ. For shares it
    is near to that of Agresti and Coull (1998). The two are as large as the mean group, since all samples of a group
    may be lost together; where they are not, intervals of rare losses are wider still.

    Args:
        values: Value of each sample; NaN where it has none.
        n_draws: Number of draws.
        rng: Source of the draws.
        extremes: Smallest and largest value that a sample can have; None to draw from the given samples alone.
        groups: Group of each sample, drawn whole; each is its own if there are none.
        datasets: Data set of each sample: groups are drawn within each, and the means of data sets count alike.
    """
    means = []
    for rows in dataset_rows(datasets, len(values)):
        numbers = group_numbers(groups, len(values))[rows]
        numbers = np.unique(numbers, return_inverse=True)[1]
        n_groups, flat = int(numbers.max()) + 1, values[rows][:, None].flatten(1).double().cpu()
        totals, sizes = (
            torch.zeros(n_groups, flat.shape[1], dtype=torch.double).index_add_(0, torch.from_numpy(numbers), added)
            for added in (flat.nan_to_num(), (~flat.isnan()).double())
        )
        for extreme in extremes or ():
            size = torch.full_like(sizes[:1], len(flat) / n_groups)
            totals, sizes = torch.cat([totals, extreme * size]), torch.cat([sizes, size])
        drawn = rng.choice(len(totals), (n_draws, n_groups))
        # Number of times that each group is drawn; the means of all draws are then quotients of products of matrices.
        offsets = len(totals) * np.arange(n_draws)[:, None]
        counts = np.bincount((drawn + offsets).ravel(), minlength=n_draws * len(totals)).reshape(n_draws, -1)
        weights = torch.from_numpy(counts).double()
        means.append((weights @ totals) / (weights @ sizes))
    return torch.stack(means).nanmean(0).reshape(n_draws, *values.shape[1:])


def group_numbers(groups: Sequence[object], n_samples: int) -> Int[np.ndarray, "sample"]:
    """Number of each sample's group, in order of first appearance; each sample is its own group if there are none.

    Raises:
        ValueError: If there is not one group for each sample.
    """
    if not groups:
        return np.arange(n_samples)
    if len(groups) != n_samples:
        raise ValueError(f"{len(groups)} groups were given for {n_samples} samples.")
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    return np.array([numbers[group] for group in groups])


def group_rows(groups: Sequence[object], n_samples: int) -> list[Int[np.ndarray, "_row"]]:
    """Numbers of the samples of each group, in order of first appearance."""
    numbers = group_numbers(groups, n_samples)
    return np.split(np.argsort(numbers, kind="stable"), np.cumsum(np.bincount(numbers))[:-1])


def join_groups(parts: Iterable[tuple[Sequence[str], Sequence[str]]]) -> tuple[str, ...]:
    """Groups of samples that are put together, from ids and groups of each part; empty if every sample is its own.

    A sample of a part without groups is a group of its own, named by its id.
    """
    ids: list[str] = []
    joined: list[str] = []
    for samples, groups in parts:
        ids += samples
        joined += groups or samples
    return () if joined == ids else tuple(joined)


def _n_groups(
    values: Float[Tensor, "sample layer head"], groups: Sequence[object], datasets: Sequence[str]
) -> Int[Tensor, "layer head"]:
    """Number of groups in which a head has scores, in the smallest data set that scores it."""
    scored, numbers = ~values.isnan().cpu(), group_numbers(groups, len(values))
    counts = []
    for rows in dataset_rows(datasets, len(values)):
        of_dataset, parts = scored[rows], group_rows(numbers[rows].tolist(), len(rows))
        counts.append(torch.stack([of_dataset[part].any(0) for part in parts]).sum(0))
    stacked = torch.stack(counts)
    return torch.where(stacked == 0, len(values) + 1, stacked).amin(0) * (stacked > 0).any(0)
