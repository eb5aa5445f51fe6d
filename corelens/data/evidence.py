"""From evidence in pixels and seconds to the positions that hold it."""

from collections.abc import Sequence
from functools import reduce

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from corelens.data.sample import Evidence, Sample
from corelens.refusals import see
from corelens.tokens import Box, Rule, TokenMap, Views


def evidence_tokens(
    samples: Sequence[Sample], tokens: TokenMap, rule: Rule = "overlap", views: Views = "all"
) -> Bool[Tensor, "batch position"] | Float[Tensor, "batch position"]:
    """Which visual tokens hold the evidence of each sample of a batch, all of its regions together.

    A token that several regions cover counts with the largest cover times weight, not with their sum. Of evidence that
    moves through a video, a token gets the regions of all frames that its view stands for, sampled or not.

    Args:
        samples: The samples of the batch.
        tokens: The map of their prepared inputs.
        rule: How pixels become tokens; see `TokenMap.inside`. All of a picture are all of its visual tokens.
        views: Which views of a picture hold its evidence; see `TokenMap.inside`.

    Returns:
        Booleans, or numbers in [0, 1] if the rule is `fraction` or some evidence has a weight below one.

    Raises:
        ValueError: If a sample has no evidence, a region lies outside its picture or video, or a region or a whole
            course through a video selects no visual token; names the sample.
    """
    rows = [_of_sample(sample, tokens[index], rule, views) for index, sample in enumerate(samples)]
    if all(row.dtype == torch.bool for row in rows):
        return torch.cat(rows)
    return torch.cat([row.float() for row in rows])


def _of_sample(sample: Sample, tokens: TokenMap, rule: Rule, views: Views) -> Tensor:
    if not sample.evidence:
        raise ValueError(f"sample {sample.id} has no evidence, so nothing can be measured on it. {see('no-evidence')}")
    try:
        # Processors may start to sample a video late: what no view shows is no evidence for the model.
        regions = [_of_region(region, tokens, rule, views) for region in sample.evidence if _shown(region, tokens)]
    except ValueError as cause:
        raise ValueError(f"sample {sample.id}: {cause}") from cause
    if not regions:
        raise ValueError(f"sample {sample.id}: no sampled frame shows its evidence.")
    return reduce(torch.maximum, regions)


def _shown(region: Evidence, tokens: TokenMap) -> bool:
    if region.seconds is None:
        return True
    first = tokens.seconds[tokens.media == region.media, 0]
    return not len(first) or region.seconds[1] > float(first.nan_to_num(0).min())


def _of_region(region: Evidence, tokens: TokenMap, rule: Rule, views: Views) -> Tensor:
    if region.box is None and region.seconds is None:
        selected = tokens.of_media(region.media, views)
        selected = selected.float() if rule == "fraction" else selected
    else:
        box = region.box or Box(0, 0, *tokens.sizes[0][region.media])
        selected = tokens.inside(box, rule, region.media, views, region.seconds)
    return selected if region.weight == 1 else selected.float() * region.weight
