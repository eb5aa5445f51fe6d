"""Aggregation of scores over samples: from one score per sample and head to one per head."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from einops import reduce
from jaxtyping import Float, Int
from torch import Tensor

Aggregation = Literal["mean", "median", "frequency", "rank", "z_score", "max"]
"""Statistic over samples; see `aggregate`."""


def aggregate(
    values: Float[Tensor, "sample layer head"],
    how: Aggregation = "mean",
    datasets: Sequence[str] = (),
    fraction: float = 0.05,
) -> Float[Tensor, "layer head"]:
    """Aggregate scores over samples to one number per head; higher is more for every aggregation.

    Samples are aggregated within each data set, and data sets then count alike, however many samples they have. They do
    not weigh alike where their scores differ in scale: the mass on a word of a page is smaller than that on half of a
    photograph, and a mean follows the photographs. `rank` and `z_score` are the choice there.

    Args:
        values: Scores. NaN where there is no head, or where the score of a sample is undefined: that sample does not
            count for that head.
        how: `mean`; `median`, of an even number of samples the mean of the middle two. `frequency`: share of the
            samples with a score in which the head is among the top `fraction` of heads. `rank`: minus the mean rank in
            a sample, zero for a head that is always first; ties share a rank. `z_score`: the mean, standardised over
            heads. `max`: the mean. Over data sets, `max` takes the largest, and all others the mean.
        datasets: The data set or task of each sample; one for all by default.
        fraction: Share of heads in the top set, for `frequency`.

    Returns:
        NaN for heads that have no score in any sample.
    """
    if how not in get_args(Aggregation):
        raise ValueError(f"aggregation {how!r} is not known; it is one of {', '.join(get_args(Aggregation))}.")
    values = full_precision(values)
    if how in ("frequency", "rank"):
        ranks = _ranks(values)
        n_heads = reduce(~values.isnan(), "sample layer head -> sample 1 1", "sum").double()
        in_top = (ranks < (fraction * n_heads - 1e-9).ceil()).to(values)
        values = -ranks if how == "rank" else torch.where(ranks.isnan(), torch.nan, in_top)
    of_datasets = torch.stack([_location(values[rows], how) for rows in dataset_rows(datasets, len(values))])
    if how == "max":
        largest = torch.where(of_datasets.isnan(), -torch.inf, of_datasets).amax(0)
        return torch.where(of_datasets.isnan().all(0), torch.nan, largest)
    return of_datasets.nanmean(0)


def _location(values: Float[Tensor, "sample layer head"], how: Aggregation) -> Float[Tensor, "layer head"]:
    """Aggregate of the samples of one data set."""
    if how == "median":
        # torch's is the lower of the middle two.
        return (values.nanmedian(0).values - (-values).nanmedian(0).values) / 2
    mean = values.nanmean(0)
    if how != "z_score":
        return mean
    centre = mean.nanmean()
    return (mean - centre) / (mean - centre).square().nanmean().sqrt()


def dataset_rows(datasets: Sequence[str], n_samples: int) -> list[list[int]]:
    """Numbers of the samples of each data set, in order of first appearance; of all samples if none are named.

    Raises:
        ValueError: If there is not one data set for each sample.
    """
    if not datasets:
        return [list(range(n_samples))]
    if len(datasets) != n_samples:
        raise ValueError(f"{len(datasets)} data sets were given for {n_samples} samples.")
    rows: dict[str, list[int]] = {}
    for row, dataset in enumerate(datasets):
        rows.setdefault(dataset, []).append(row)
    return list(rows.values())


def full_precision(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The same numbers in float32 or more: sums over many lose digits in float16 and bfloat16."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _ranks(values: Float[Tensor, "sample layer head"]) -> Float[Tensor, "sample layer head"]:
    """Rank of every head in each sample, from zero for the highest; ties share their mean rank."""
    flat = values.flatten(1)
    scored = ~flat.isnan()
    ordered = torch.where(scored, -flat, torch.inf).sort(-1).values.contiguous()
    first: Int[Tensor, "sample head"] = torch.searchsorted(ordered, -flat.contiguous(), side="left")
    last: Int[Tensor, "sample head"] = torch.searchsorted(ordered, -flat.contiguous(), side="right") - 1
    return torch.where(scored, (first + last) / 2, torch.nan).unflatten(1, values.shape[1:])
