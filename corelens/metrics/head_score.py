"""The family of head scores: query tokens, contribution, reduction and normalisation, each chosen on its own."""

from typing import Literal, get_args

import torch
from einops import einsum, reduce, repeat
from jaxtyping import Bool, Float, Shaped
from torch import Tensor


def mean_over_queries(
    of_query: Float[Tensor, "batch head query"], queries: Bool[Tensor, "batch query"]
) -> Float[Tensor, "batch head"]:
    """Mean over the rows that are query tokens; the others may hold anything, even NaN."""
    # `where`, not a product: NaN times zero is NaN.
    of_chosen = torch.where(queries[:, None], of_query, 0)
    return reduce(of_chosen, "batch head query -> batch head", "sum") / reduce(
        queries.to(of_query), "batch query -> batch 1", "sum"
    )


def require_queries(**masks: Shaped[Tensor, "batch _"]) -> None:
    """Raises a ValueError that names the first mask that marks nothing in some sample, and the samples."""
    for name, mask in masks.items():
        if empty := (~mask.bool().any(-1)).nonzero().flatten().tolist():
            raise ValueError(f"`{name}` marks nothing in sample(s) {empty}: the metric is undefined there.")


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
            what the head writes from there (`output_norms`, `logit_contributions`).
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
    require_queries(evidence=evidence, queries=queries)
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


def retrieval_attention_mass(
    pattern: Float[Tensor, "batch head query key"],
    evidence: Keys,
    queries: Bool[Tensor, "batch query"],
) -> Float[Tensor, "batch head"]:
    r"""Attention that each head sends from the query tokens to the evidence, RAM.

    $$\mathrm{RAM}_h = \frac{1}{|Q|} \sum_{q \in Q} \sum_{k \in E} A_{h,q,k}$$

    Summed over the evidence, not averaged: it is a mass. Averaged over the query tokens.

    Args:
        pattern: Attention probabilities after softmax; no row sums to more than one.
        evidence: Where the evidence is among the keys, as weights in [0, 1] if it covers tokens in part.
        queries: Which rows of `pattern` are query tokens. Rows that are not may hold anything, even NaN.

    Returns:
        Values in [0, 1]. A head that attends evenly scores the evidence's share of the keys that it can see.

    Raises:
        ValueError: If a sample marks no evidence or no query token, where the mean is undefined, or if `pattern` holds
            no probabilities.

    Source:
        Sun et al. 2026 (arXiv 2606.05843) name the metric; their formula is not public. This one is inferred: it is
        the score of the same laboratory's Elastic Attention (arXiv 2601.17367, equation 9), which they also call
        attention mass, with any set of query tokens in place of the last one.

    Examples:
        >>> import torch
        >>> pattern = torch.tensor([[[[0.7, 0.2, 0.1]]]])
        >>> evidence, queries = torch.tensor([[True, False, True]]), torch.tensor([[True]])
        >>> retrieval_attention_mass(pattern, evidence, queries)
        tensor([[0.8000]])
    """
    mass = head_score(pattern, evidence, queries)
    # Written so that NaN fails as well.
    if not ((mass > -1e-4) & (mass < 1 + 1e-4)).all():
        low, high = mass.min().item(), mass.max().item()
        raise ValueError(f"masses lie between {low:.4g} and {high:.4g}: `pattern` must hold probabilities.")
    return mass.clamp(0, 1)


def visual_share(
    pattern: Float[Tensor, "batch head query key"],
    image: Bool[Tensor, "batch key"],
    queries: Bool[Tensor, "batch query"],
) -> Float[Tensor, "batch head"]:
    """Attention that each head sends from the query tokens to all visual tokens.

    Args:
        pattern: Attention probabilities after softmax.
        image: Which keys are visual tokens.
        queries: Which rows of `pattern` are query tokens.

    Returns:
        Values in [0, 1], never below the retrieval attention mass of evidence that lies within `image`.

    Raises:
        ValueError: If a sample has no visual token or no query token.
    """
    return retrieval_attention_mass(pattern, image, queries)


def attention_shift(
    before: Float[Tensor, "batch head query key"],
    after: Float[Tensor, "batch head query key"],
    queries: Bool[Tensor, "batch query"],
) -> Float[Tensor, "batch head"]:
    r"""Attention that left the keys where it was, between two passes over the same inputs.

    $$\frac{1}{|Q|} \sum_{q \in Q} \sum_k \max(A_{h,q,k} - A'_{h,q,k}, 0)$$

    For rows that sum to one this is their total variation distance, and for cut edges the attention that they carried.

    Args:
        before: Attention probabilities of one pass, after softmax.
        after: Those of the other.
        queries: Which rows are looked at. Others may hold anything, even NaN.

    Returns:
        Values in [0, 1]; zero if nothing moved. What a model's learned sink takes counts as moved, and what it gives
        does not.

    Raises:
        ValueError: If a sample marks no row.
    """
    everywhere = torch.ones_like(queries[:, :1]).expand(-1, before.shape[-1])
    return head_score((before - after).clamp(min=0), everywhere, queries)
