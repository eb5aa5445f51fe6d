"""Attention masses: the paper's metric, and the share of attention that looks at pictures at all."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from corelens.metrics.family import Keys, head_score


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


def attention_moved(
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
