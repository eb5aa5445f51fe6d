"""Head scores: how much of what an attention head takes from the keys comes from the evidence.

Scores of the literature are points of one family: query tokens, contribution, reduction and normalisation are chosen
independently. For each head, with query tokens Q, evidence E and contributions c,

    score = normalise(mean over q in Q of (reduce over k in E of c[q, k]))

        contributions          evidence      queries
    [batch head query key]   [batch key]  [batch query]
               |                  |             |
               +---- _reduce -----+             |        e.g. the sum over the evidence
                        |                       |
               [batch head query]               |
                        +-- mean_over_queries --+
                        |
                  [batch head]                           compared with other visual tokens or |E|

`head_score` is the family, `retrieval_attention_mass` (RAM) its best-known point. `presets.py` names the others,
`contributions.py` has contributions that are not attention alone, and `corelens.experiments.head_metrics` computes all
of it from a forward pass.
"""

from typing import Literal, get_args

import torch
from einops import einsum, reduce, repeat
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

Keys = Bool[Tensor, "batch key"] | Float[Tensor, "batch key"]
"""Mask of the keys that count, or their weights in [0, 1]."""

Reduction = Literal["sum", "mean", "max", "argmax", "top_k"]
"""Reduction of a row over the evidence; see `head_score`."""

Normalisation = Literal["none", "size", "share", "lift", "rest"]
"""Quantity that a score is compared with; see `head_score`."""


def head_score(
    contributions: Float[Tensor, "batch head query key"],
    evidence: Keys,
    queries: Bool[Tensor, "batch query"],
    visual: Bool[Tensor, "batch key"] | None = None,
    reduction: Reduction = "sum",
    normalisation: Normalisation = "none",
    excluded: Bool[Tensor, "batch key"] | None = None,
) -> Float[Tensor, "batch head"]:
    r"""Compute how much of what each head takes from the keys comes from the evidence.

    $$S_h = N\Bigl(\frac{1}{|Q|} \sum_{q \in Q} R_{k \in E}\, c_{h,q,k}\Bigr)$$

    Scores of the literature are points of this family; `corelens.metrics.PRESETS` names them. Normalisations compare
    means over the query tokens, they do not average ratios.

    Args:
        contributions: Contribution of each key to each query: attention probabilities after softmax, or these times
            the head's output for that key (`output_norms`, `logit_contributions`).
        evidence: Mask or weights of the evidence among the keys.
        queries: Mask of the rows that are query tokens. Other rows may hold anything, even NaN.
        visual: Mask of the tokens that the evidence is compared with, e.g. all visual tokens; for `share`, `lift` and
            `rest`.
        reduction: `sum`: all contributions of the evidence, a mass. `mean`: their mean. `max`: the largest. `argmax`:
            one if the largest of the whole row lies in the evidence, else zero. `top_k`: of the row's |E| largest
            contributions those that lie in the evidence, summed and divided by |E|.
        normalisation: `none`. `size`: divided by |E|. `share`: divided by the same of all visual tokens. `lift`: the
            share, divided by the evidence's share of the visual tokens; one is chance. `rest`: minus the same of the
            other visual tokens times |E| / |rest|; zero is chance.
        excluded: Mask of keys that do not count, e.g. attention sinks. The `argmax` of a row may still be one of them.

    Returns:
        In [0, 1] for attention, `sum`, `mean`, `max`, `argmax` and `top_k`, with `none`, `size` and `share`; NaN where
        a normalisation divides by zero, as for a head that attends to no visual token.

    Raises:
        ValueError: If `reduction` or `normalisation` is not known, if a sample has no evidence or no query token, or if
            `visual` is needed and missing, or does not contain the evidence.

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

    def mean_reduction(key_weights: Float[Tensor, "batch key"]) -> Float[Tensor, "batch head"]:
        return mean_over_queries(_reduce(contributions, key_weights, reduction), queries)

    score = mean_reduction(weights)
    size, n_others = weights.sum(-1, keepdim=True), others.sum(-1, keepdim=True)
    if normalisation == "size":
        return score / size
    if normalisation == "rest":
        return score - mean_reduction(others) * size / n_others
    if normalisation in ("share", "lift"):
        score = score / mean_reduction(weights + others)
        return score if normalisation == "share" else score * (size + n_others) / size
    return score


def retrieval_attention_mass(
    pattern: Float[Tensor, "batch head query key"],
    evidence: Keys,
    queries: Bool[Tensor, "batch query"],
) -> Float[Tensor, "batch head"]:
    r"""Retrieval attention mass (RAM): attention of each head from the query tokens to the evidence.

    $$\mathrm{RAM}_h = \frac{1}{|Q|} \sum_{q \in Q} \sum_{k \in E} A_{h,q,k}$$

    Summed over the evidence, not averaged: it is a mass. Averaged over the query tokens.

    Args:
        pattern: Attention probabilities after softmax; no row sums to more than one.
        evidence: Mask of the evidence among the keys, or weights in [0, 1] if it covers tokens in part.
        queries: Mask of the rows of `pattern` that are query tokens. Other rows may hold anything, even NaN.

    Returns:
        Values in [0, 1]. A head that attends evenly scores the evidence's share of the keys that it may attend to.

    Raises:
        ValueError: If a sample has no evidence or no query token, where the mean is undefined, or if `pattern` does not
            hold probabilities.

    Source:
        Sun et al. 2026 (arXiv 2606.05843), equation 1, with the tokens of the question as query tokens. Their
        algorithm 1 sums over these instead of averaging, which ranks the heads of a sample alike.

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
    """Attention of each head from the query tokens to all visual tokens.

    Args:
        pattern: Attention probabilities after softmax.
        image: Mask of the keys that are visual tokens.
        queries: Mask of the rows of `pattern` that are query tokens.

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
    r"""Attention that moved to other keys between two passes over the same inputs.

    $$\frac{1}{|Q|} \sum_{q \in Q} \sum_k \max(A_{h,q,k} - A'_{h,q,k}, 0)$$

    For rows that sum to one this is their total variation distance, and for cut edges the attention that they carried.

    Args:
        before: Attention probabilities of one pass, after softmax.
        after: Those of the other.
        queries: Mask of the rows that are compared. Others may hold anything, even NaN.

    Returns:
        Values in [0, 1]; zero if nothing moved. Attention that a learned sink gains counts as moved, attention that it
        loses does not.

    Raises:
        ValueError: If `queries` marks no row of some sample.
    """
    all_keys = torch.ones_like(queries[:, :1]).expand(-1, before.shape[-1])
    return head_score((before - after).clamp(min=0), all_keys, queries)


def mean_over_queries(
    values: Float[Tensor, "batch head query"], queries: Bool[Tensor, "batch query"]
) -> Float[Tensor, "batch head"]:
    """Mean over the rows that are query tokens; other rows may hold anything, even NaN."""
    # `where`, not a product: NaN times zero is NaN.
    total = reduce(torch.where(queries[:, None], values, 0), "batch head query -> batch head", "sum")
    return total / reduce(queries.to(values), "batch query -> batch 1", "sum")


def require_queries(**masks: Shaped[Tensor, "batch _"]) -> None:
    """Raise a ValueError if a mask marks nothing in some sample; it names the mask and the samples."""
    for name, mask in masks.items():
        if empty := (~mask.bool().any(-1)).nonzero().flatten().tolist():
            raise ValueError(f"`{name}` marks nothing in sample(s) {empty}: the metric is undefined there.")


def _reduce(
    contributions: Float[Tensor, "batch head query key"], weights: Float[Tensor, "batch key"], reduction: Reduction
) -> Float[Tensor, "batch head query"]:
    """Reduce every row over the keys that have a weight."""
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
    in_top_k = torch.arange(largest.shape[-1], device=largest.device) < n_keys[..., None]
    hits = torch.where(in_top_k, largest * weights.gather(-1, index), 0)
    return reduce(hits, "batch head query k -> batch head query", "sum") / n_keys
