"""The family of head scores: query tokens, contribution, reduction and normalisation, each chosen on its own."""

from typing import Literal, get_args

import torch
from einops import einsum, reduce, repeat
from jaxtyping import Bool, Float
from torch import Tensor

from corelens.metrics.queries import mean_over_queries, require_some

Keys = Bool[Tensor, "batch key"] | Float[Tensor, "batch key"]
"""Which keys count: yes or no, or with a weight in [0, 1]."""

Reduction = Literal["sum", "mean", "max", "argmax", "top_k"]
"""What a row says about the evidence; see `head_score`."""

Normalisation = Literal["none", "size", "share", "lift", "rest"]
"""What a score is compared with; see `head_score`."""


def head_score(
    contributions: Float[Tensor, "batch head query key"],
    evidence: Keys,
    queries: Bool[Tensor, "batch query"],
    visual: Bool[Tensor, "batch key"] | None = None,
    reduction: Reduction = "sum",
    normalisation: Normalisation = "none",
    excluded: Bool[Tensor, "batch key"] | None = None,
) -> Float[Tensor, "batch head"]:
    r"""How much of what each head takes from the keys comes from the evidence.

    $$S_h = N\Bigl(\frac{1}{|Q|} \sum_{q \in Q} R_{k \in E}\, c_{h,q,k}\Bigr)$$

    Scores of the literature are points of this family; `corelens.metrics.PRESETS` names them. Normalisations compare
    means over the query tokens, they do not average ratios.

    Args:
        contributions: What each key contributes to each query: attention probabilities after softmax, or these times
            what the head writes from there (`write_sizes`, `write_towards`).
        evidence: Where the evidence is among the keys.
        queries: Which rows are query tokens. Rows that are not may hold anything, even NaN.
        visual: What the evidence is compared with, e.g. all visual tokens; for `share`, `lift` and `rest`.
        reduction: `sum`: all contributions of the evidence, a mass. `mean`: their mean. `max`: the largest. `argmax`:
            one if the largest of the whole row lies in the evidence, else zero. `top_k`: of the row's |E| largest
            contributions those that lie in the evidence, summed and divided by |E|.
        normalisation: `none`. `size`: divided by |E|. `share`: divided by the same of all visual tokens. `lift`: the
            share, divided by the evidence's share of the visual tokens; one is chance. `rest`: minus the same of the
            other visual tokens times |E| / |rest|; zero is chance.
        excluded: Keys that count nowhere, e.g. attention sinks. They still are what an `argmax` may find.

    Returns:
        In [0, 1] for attention, `sum`, `mean`, `max`, `argmax` and `top_k`, with `none`, `size` and `share`; NaN where
        a normalisation divides by zero, as for a head that never looks at a visual token.

    Raises:
        ValueError: If an axis is not known, if a sample has no evidence or no query token, or if `visual` is needed and
            missing, or does not hold the evidence.

    Source:
        Axes after "Visual Retrieval Heads" (arXiv 2608.27417), widened: `top_k` is HeadKV's, `rest` is LOCOS's (arXiv
        2607.01002), `share` is VERA's (arXiv 2602.10146).

    Examples:
        >>> pattern = torch.tensor([[[[0.7, 0.2, 0.1]]]])
        >>> evidence, query = torch.tensor([[True, False, True]]), torch.tensor([[True]])
        >>> head_score(pattern, evidence, query), head_score(pattern, evidence, query, reduction="mean")
        (tensor([[0.8000]]), tensor([[0.4000]]))
    """
    for axis, value, known in (("reduction", reduction, Reduction), ("normalisation", normalisation, Normalisation)):
        if value not in get_args(known):
            raise ValueError(f"{axis}={value!r} is not known; it is one of {', '.join(get_args(known))}.")
    require_some(evidence=evidence, queries=queries)
    weights = evidence.to(contributions)
    if normalisation in ("share", "lift", "rest"):
        if visual is None:
            raise ValueError(f"normalisation={normalisation!r} compares with other tokens: pass `visual`.")
        if (outside := (evidence.bool() & ~visual).any(-1)).any():
            raise ValueError(f"`evidence` leaves `visual` in sample(s) {outside.nonzero().flatten().tolist()}.")
    others = torch.zeros_like(weights) if visual is None else visual.to(weights) - weights
    if excluded is not None:
        weights, others = weights.masked_fill(excluded, 0), others.masked_fill(excluded, 0)

    def reduced(keys: Float[Tensor, "batch key"]) -> Float[Tensor, "batch head"]:
        return mean_over_queries(_reduce(contributions, keys, reduction), queries)

    score = reduced(weights)
    size, n_others = weights.sum(-1, keepdim=True), others.sum(-1, keepdim=True)
    if normalisation == "size":
        return score / size
    if normalisation == "rest":
        return score - reduced(others) * size / n_others
    if normalisation in ("share", "lift"):
        score = score / reduced(weights + others)
        return score if normalisation == "share" else score * (size + n_others) / size
    return score


def _reduce(
    contributions: Float[Tensor, "batch head query key"], weights: Float[Tensor, "batch key"], reduction: Reduction
) -> Float[Tensor, "batch head query"]:
    """What each row says about the keys that have a weight."""
    if reduction in ("sum", "mean"):
        total = einsum(contributions, weights, "batch head query key, batch key -> batch head query")
        return total if reduction == "sum" else total / reduce(weights, "batch key -> batch 1 1", "sum")
    if reduction == "max":
        weighted = contributions * weights[:, None, None]
        return weighted.masked_fill(weights[:, None, None] == 0, -torch.inf).amax(-1)
    _, n_heads, n_queries, _ = contributions.shape
    weights = repeat(weights, "batch key -> batch head query key", head=n_heads, query=n_queries)
    if reduction == "argmax":
        return weights.gather(-1, contributions.argmax(-1, keepdim=True)).squeeze(-1)
    n_keys = weights.count_nonzero(-1)
    largest, index = contributions.topk(int(n_keys.max()), -1)
    ranked = torch.arange(largest.shape[-1], device=largest.device) < n_keys[..., None]
    hits = torch.where(ranked, largest * weights.gather(-1, index), 0)
    return reduce(hits, "batch head query k -> batch head query", "sum") / n_keys
