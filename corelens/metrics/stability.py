"""Stability of a ranking of heads over samples, and agreement of rankings."""

from collections.abc import Sequence, Set
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.stats import binom, hypergeom, norm, rankdata
from torch import Tensor

from corelens.metrics.aggregation import aggregate, full_precision
from corelens.metrics.bootstrap import group_rows
from corelens.metrics.score_distribution import head_count


class Stability(NamedTuple):
    """Overlap of the top sets of two disjoint subsets of the samples, by the size of a subset."""

    n_samples: tuple[int, ...]
    """Number of samples of a subset, or of groups where samples come in such."""
    mean: Float[np.ndarray, "size"]
    low: Float[np.ndarray, "size"]
    """The 5th percentile over splits."""
    high: Float[np.ndarray, "size"]
    """The 95th percentile over splits."""


def stability_curve(
    values: Float[Tensor, "sample layer head"],
    fraction: float = 0.05,
    n_splits: int = 100,
    seed: int = 0,
    groups: Sequence[object] = (),
    datasets: Sequence[str] = (),
) -> Stability:
    """Overlap of the top heads of disjoint random subsets of equal size, from one sample to half of all.

    The overlap is the share of one top set that is in the other: one if the samples do not matter, and about
    `fraction` by chance.

    Args:
        values: Scores; NaN where a head has none.
        fraction: Share of heads in a top set.
        n_splits: Number of random splits.
        seed: Seed of the splits.
        groups: Group of each sample, such as its picture, which no split divides; each is its own if there are none.
        datasets: Data set of each sample, for heads ranked by the mean of the means of data sets; one by default.

    Raises:
        ValueError: If there are fewer than two samples, or groups of them.
    """
    parts = group_rows(groups, len(values))
    if len(parts) < 2:
        unit = "group of samples" if groups else "sample"
        raise ValueError(f"{len(parts)} {unit} cannot be split; a stability curve needs two or more.")
    sizes = sorted({int(size) for size in np.geomspace(1, len(parts) // 2, 12).round()})
    rng = np.random.default_rng(seed)
    overlaps = np.empty((n_splits, len(sizes)))

    def top(subset: Sequence[int]) -> set[tuple[int, int]]:
        rows: list[int] = np.concatenate([parts[number] for number in subset]).tolist()
        return top_heads(aggregate(values[rows], "mean", [datasets[row] for row in rows if datasets]), fraction)

    for split in range(n_splits):
        order = rng.permutation(len(parts)).tolist()
        for column, size in enumerate(sizes):
            first, second = top(order[:size]), top(order[-size:])
            overlaps[split, column] = len(first & second) / len(first)
    return Stability(tuple(sizes), overlaps.mean(0), *np.quantile(overlaps, [0.05, 0.95], axis=0))


def top_heads(scores: Float[Tensor, "layer head"], fraction: float) -> set[tuple[int, int]]:
    """Layer and index of the highest heads; ties in order of layer and head."""
    n = head_count(fraction, int((~scores.isnan()).sum()))
    order = torch.where(scores.isnan(), -torch.inf, scores).flatten().argsort(descending=True, stable=True)[:n]
    return {divmod(index, scores.shape[1]) for index in order.tolist()}


def jaccard(one: Set[object], other: Set[object]) -> float:
    """Share of the heads in either set that are in both; one if both are empty."""
    return len(one & other) / len(one | other) if one | other else 1.0


class Overlap(NamedTuple):
    """Number of heads that two sets share, and its distribution if one set were drawn at random."""

    shared: int
    expected: float
    """Mean number by chance."""
    low: int
    """Lower bound of the number by chance, in 97.5 % of draws."""
    high: int
    """Upper bound of the number by chance, in 97.5 % of draws."""
    p_value: float
    """Probability of sharing as many or more by chance."""


def overlap(one: Set[object], other: Set[object], n_heads: int) -> Overlap:
    r"""Compare the number of heads that two sets share with its exact distribution by chance.

    $$P(\text{shared} = s) = \binom{|A|}{s} \binom{N - |A|}{|B| - s} \Big/ \binom{N}{|B|}$$

    Args:
        one: A set of heads.
        other: A set of heads.
        n_heads: Number of heads from which either set could have been drawn.

    Raises:
        ValueError: If the sets have more than `n_heads` heads.

    Examples:
        >>> overlap({1, 2}, {2, 3}, 4).expected, round(overlap({1, 2}, {1, 2}, 4).p_value, 4)
        (1.0, 0.1667)
    """
    if (n_named := len(one | other)) > n_heads:
        raise ValueError(f"the sets name {n_named} heads of n_heads={n_heads}; they must be drawn from the same heads.")
    # Any: scipy's own annotations do not know the methods of a frozen distribution.
    chance: Any = hypergeom(n_heads, len(one), len(other))
    low, high = chance.ppf([0.025, 0.975])
    shared = len(one & other)
    expected = len(one) * len(other) / max(n_heads, 1)
    return Overlap(shared, expected, int(low), int(high), float(chance.sf(shared - 1)))


def spearman(one: Float[Tensor, "layer head"], other: Float[Tensor, "layer head"]) -> float:
    """Rank correlation of two scores over the heads that have both."""
    scored = ~(one.isnan() | other.isnan())
    ranks = (rankdata(full_precision(scores[scored]).cpu()) for scores in (one, other))
    return float(np.corrcoef(*ranks)[0, 1])


class StableHeads(NamedTuple):
    """Heads that are in the top share on many data sets."""

    matrix: Float[Tensor, "layer head"]
    """Number of data sets on which each head is in the top share; NaN where there is no head."""

    n_heads: tuple[int, ...]
    """Number of heads by that count, from none of the data sets to all."""

    by_chance: tuple[float, ...]
    """The same if the top heads of each data set were drawn at random, on average."""


def stable_heads(scores: Float[Tensor, "dataset layer head"], share: float | int = 0.05) -> StableHeads:
    r"""Count the data sets on which each head is in the top five percent.

    $$S_{l,h} = \sum_t \mathbf{1}\left[M_{t,l,h} \ge \tau_t\right]$$, where $\tau_t$ is the 95th percentile of a data
    set's scores. By chance, the number of heads that are in the top share on s of n data sets is binomial: of 1,152
    heads, 0.007 are in the top five percent of all four.

    Args:
        scores: One number per head for every data set; NaN where there is no head.
        share: Share of heads above the percentile.

    Raises:
        ValueError: If `share` is not between zero and one, or a data set scores other heads than the first.

    Source:
        Sun et al. 2026 (arXiv 2606.05843), appendix E.1, equations 20 and 21. Two things are not in the paper: the
        percentile is interpolated linearly, as by `numpy.percentile`, and heads that a model does not have are left
        out, where the paper counts missing scores as zero.

    Examples:
        >>> stable_heads(torch.tensor([[[0.1, 0.2, 0.9]], [[0.3, 0.1, 0.8]]])).n_heads
        (2, 0, 1)
    """
    if not 0 < share < 1:
        raise ValueError(f"share={share} is outside (0, 1); 0.05 means the top five percent.")
    is_head = _same_heads(scores)
    values = scores[:, is_head].double()
    in_top = values >= values.quantile(1 - share, dim=1, keepdim=True)
    matrix = torch.full(scores.shape[1:], torch.nan, device=scores.device)
    matrix[is_head] = in_top.sum(0).float()
    n_datasets, n_heads = values.shape
    counts = torch.bincount(in_top.sum(0), minlength=n_datasets + 1).tolist()
    by_chance = n_heads * binom.pmf(np.arange(n_datasets + 1), n_datasets, share)
    return StableHeads(matrix, tuple(counts), tuple(by_chance.tolist()))


def spearman_matrix(scores: Float[Tensor, "dataset layer head"]) -> Float[Tensor, "dataset dataset"]:
    """Rank correlations of the scores of all pairs of data sets.

    Args:
        scores: One number per head for every data set; NaN where there is no head.

    Raises:
        ValueError: If a data set scores other heads than the first.

    Source:
        Sun et al. 2026 (arXiv 2606.05843), appendix E.1 and figure 5a.
    """
    _same_heads(scores)
    return torch.tensor([[spearman(row, column) for column in scores] for row in scores])


def _same_heads(scores: Float[Tensor, "dataset layer head"]) -> Bool[Tensor, "layer head"]:
    """Mask of the heads that all data sets score."""
    is_head = ~scores[0].isnan()
    for number, dataset in enumerate(scores):
        if not torch.equal(~dataset.isnan(), is_head):
            raise ValueError(f"data set {number} scores other heads than data set 0; one model has the same heads.")
    if not is_head.any():
        raise ValueError("no head has a score.")
    return is_head


def spearman_interval(correlation: float, n_heads: int, level: float = 0.95) -> tuple[float, float]:
    """Confidence interval of a rank correlation, as if heads were drawn independently.

    Source:
        Bonett and Wright 2000: normal in Fisher's z, with the variance (1 + r^2 / 2) / (n - 3).
    """
    if n_heads < 4:
        return -1.0, 1.0
    half_width = norm.ppf((1 + level) / 2) * np.sqrt((1 + correlation**2 / 2) / (n_heads - 3))
    # A perfect correlation is infinite in z.
    centre = np.arctanh(np.clip(correlation, -1 + 1e-12, 1 - 1e-12))
    return float(np.tanh(centre - half_width)), float(np.tanh(centre + half_width))


def rank_biased_overlap(one: Sequence[object], other: Sequence[object], persistence: float = 0.95) -> float:
    r"""Top-weighted agreement of two rankings, in [0, 1].

    $$\mathrm{RBO} = (1 - p) \sum_{d \ge 1} p^{d-1} A_d$$, where A_d is the shared part of the first d heads. The
    agreement at the end of the lists is extrapolated, so that equal rankings score one.

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
    top_of_one: set[object] = set()
    top_of_other: set[object] = set()
    total, agreement = 0.0, 0.0
    for depth, (head_of_one, head_of_other) in enumerate(zip(one, other, strict=True), start=1):
        top_of_one.add(head_of_one)
        top_of_other.add(head_of_other)
        agreement = len(top_of_one & top_of_other) / depth
        total += persistence ** (depth - 1) * agreement
    return (1 - persistence) * total + persistence ** len(one) * agreement
