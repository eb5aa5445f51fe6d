"""How much attention goes where: masses of attention probability on sets of keys."""

import torch
from einops import einsum, reduce
from jaxtyping import Bool, Float
from torch import Tensor

from corelens.metrics.queries import mean_over_queries, require_some

Keys = Bool[Tensor, "batch key"] | Float[Tensor, "batch key"]
"""Which keys count: yes or no, or with a weight in [0, 1]."""


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
        ValueError: If a sample marks no evidence or no query token, where the mean is undefined.

    Source:
        Sun et al. 2026 (arXiv 2606.05843) name the metric; their formula is not public. This one is inferred: it is
        the score of the same laboratory's Elastic Attention (arXiv 2601.17367, equation 9), which they also call
        attention mass, with any set of query tokens in place of the last one.

    Examples:
        >>> pattern = torch.tensor([[[[0.7, 0.2, 0.1]]]])
        >>> evidence, queries = torch.tensor([[True, False, True]]), torch.tensor([[True]])
        >>> retrieval_attention_mass(pattern, evidence, queries)
        tensor([[0.8000]])
    """
    require_some(evidence=evidence, queries=queries)
    to_evidence = einsum(pattern, evidence.to(pattern), "batch head query key, batch key -> batch head query")
    return mean_over_queries(to_evidence, queries)


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
    require_some(image=image, queries=queries)
    to_image = einsum(pattern, image.to(pattern), "batch head query key, batch key -> batch head query")
    return mean_over_queries(to_image, queries)


def evidence_lift(
    pattern: Float[Tensor, "batch head query key"],
    evidence: Keys,
    image: Bool[Tensor, "batch key"],
    queries: Bool[Tensor, "batch query"],
) -> Float[Tensor, "batch head"]:
    r"""How many times more of a head's visual attention the evidence gets than its share of the visual tokens.

    $$\mathrm{lift}_h = \frac{\mathrm{RAM}_h / \mathrm{visual\ share}_h}{|E| / |V|}$$

    It tells a head that finds the evidence from one that merely looks at pictures.

    Args:
        pattern: Attention probabilities after softmax.
        evidence: Where the evidence is among the visual tokens.
        image: Which keys are visual tokens.
        queries: Which rows of `pattern` are query tokens.

    Returns:
        One for a head that spreads its visual attention evenly; at most |V| / |E|; NaN for a head that never looks at
        a visual token.

    Raises:
        ValueError: If a sample has no evidence, no visual token or no query token, or evidence outside `image`.
    """
    outside = (evidence.to(torch.bool) & ~image).any(-1)
    if outside.any():
        raise ValueError(f"`evidence` leaves the visual tokens in sample(s) {outside.nonzero().flatten().tolist()}.")
    mass = retrieval_attention_mass(pattern, evidence, queries)
    share_of_attention = mass / visual_share(pattern, image, queries)
    share_of_tokens = reduce(evidence.float(), "batch key -> batch 1", "sum") / reduce(
        image.float(), "batch key -> batch 1", "sum"
    )
    return share_of_attention / share_of_tokens
