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
    groups: Sequence[str] | None = None,
    fraction: float = 0.05,
) -> Float[Tensor, "layer head"]:
    """Aggregate scores over samples to one number per head; higher is more for every aggregation.

    Args:
        values: Scores. NaN where there is no head, or where the score of a sample is undefined: that sample does not
            count for that head.
        how: `mean`; `median`, of an even number of samples the mean of the middle two. `frequency`: share of the
            samples with a score in which the head is among the top `fraction` of heads. `rank`: minus the mean rank in
            a sample, zero for a head that is always first; ties share a rank. `z_score`: standardised over heads within
            each data set, then the mean over data sets. `max`: the mean of each data set, then the largest.
        groups: The data set or task of each sample, for `z_score` and `max`; one for all by default.
        fraction: Share of heads in the top set, for `frequency`.

    Returns:
        NaN for heads that have no score in any sample.
    """
    if how not in get_args(Aggregation):
        raise ValueError(f"aggregation {how!r} is not known; it is one of {', '.join(get_args(Aggregation))}.")
    values = full_precision(values)
    if how == "mean":
        return values.nanmean(0)
    if how == "median":
        # torch's is the lower of the middle two.
        return (values.nanmedian(0).values - (-values).nanmedian(0).values) / 2
    if how in ("frequency", "rank"):
        ranks = _ranks(values)
        if how == "rank":
            return -ranks.nanmean(0)
        n_heads = reduce(~values.isnan(), "sample layer head -> sample 1 1", "sum").double()
        in_top = torch.where(ranks.isnan(), torch.nan, (ranks < (fraction * n_heads - 1e-9).ceil()).to(values))
        return in_top.nanmean(0)
    groups = groups or [""] * len(values)
    means = torch.stack(
        [values[[i for i, name in enumerate(groups) if name == group]].nanmean(0) for group in dict.fromkeys(groups)]
    )
    if how == "max":
        # NaN where a head has no score in any group.
        return torch.where(means.isnan().all(0), torch.nan, means.nan_to_num(-torch.inf).amax(0))
    centre = means.nanmean((1, 2), keepdim=True)
    spread = (means - centre).square().nanmean((1, 2), keepdim=True).sqrt()
    return ((means - centre) / spread).nanmean(0)


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
