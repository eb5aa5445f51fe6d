"""How heads spread their attention: wide or narrow, near or far, in one place of the picture or in many."""

from typing import Any

import numpy as np
import torch
from einops import reduce
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from torch import Tensor

from corelens.metrics.head_score import mean_over_queries, require_queries


def attention_entropy(
    pattern: Float[Tensor, "batch head query key"], queries: Bool[Tensor, "batch query"]
) -> Float[Tensor, "batch head"]:
    r"""Entropy of each head's attention in nats, averaged over the query tokens.

    $$H_h = -\frac{1}{|Q|} \sum_{q \in Q} \sum_k A_{h,q,k} \ln A_{h,q,k}$$

    Args:
        pattern: Attention probabilities after softmax.
        queries: Which rows of `pattern` are query tokens.

    Returns:
        Zero for a head that attends to one key, ln n for one that attends evenly to n keys.

    Raises:
        ValueError: If a sample has no query token.

    Examples:
        >>> attention_entropy(torch.full((1, 1, 1, 4), 0.25), torch.tensor([[True]])).exp()
        tensor([[4.]])
    """
    require_queries(queries=queries)
    of_query = reduce(torch.special.entr(pattern), "batch head query key -> batch head query", "sum")
    return mean_over_queries(of_query, queries)


def concentration(
    pattern: Float[Tensor, "batch head query key"], queries: Bool[Tensor, "batch query"]
) -> Float[Tensor, "batch head"]:
    r"""Probability that two draws from a row hit the same key, averaged over the query tokens.

    $$C_h = \frac{1}{|Q|} \sum_{q \in Q} \sum_k A_{h,q,k}^2$$

    Args:
        pattern: Attention probabilities after softmax.
        queries: Which rows of `pattern` are query tokens.

    Returns:
        One for a head that attends to one key, 1 / n for one that attends evenly to n keys.

    Raises:
        ValueError: If a sample has no query token.
    """
    require_queries(queries=queries)
    return mean_over_queries(reduce(pattern**2, "batch head query key -> batch head query", "sum"), queries)


def attention_distance(
    pattern: Float[Tensor, "batch head query key"],
    queries: Bool[Tensor, "batch query"],
    positions: Int[Tensor, "batch query"],
) -> Float[Tensor, "batch head"]:
    """How many positions back each head looks on average.

    Args:
        pattern: Attention probabilities after softmax; key k stands at position k.
        queries: Which rows of `pattern` are query tokens.
        positions: Where each row's query token stands in the sequence.

    Returns:
        Zero for a head that attends to the query token itself. Where rows sum to less than one (sinks without a
        token), the rest counts as no distance.

    Raises:
        ValueError: If a sample has no query token.
    """
    require_queries(queries=queries)
    back = positions[..., None] - torch.arange(pattern.shape[-1], device=pattern.device)
    of_query = reduce(pattern * back[:, None], "batch head query key -> batch head query", "sum")
    return mean_over_queries(of_query, queries)


def attention_sinks(
    resid: Float[Tensor, "batch position d_model"], threshold: float | int = 20.0
) -> Bool[Tensor, "batch position"]:
    """Positions that draw attention whatever is asked: those with a massive activation in the residual stream.

    A position is a sink if a coordinate of its residual stream is more than `threshold` times their root mean square.
    Which coordinates these are differs between models; they are found, not given.

    Args:
        resid: The residual stream where the layer begins, `hook_resid_pre`.
        threshold: No position of a model narrower than `threshold` squared can reach it.

    Source:
        Kang et al. 2025, "See What You Are Told: Visual Attention Sink" (ICLR 2025), with threshold 20; theirs looks
        at two coordinates found beforehand for each model, ours at all.
    """
    resid = resid.float()
    scale = reduce(resid**2, "batch position d_model -> batch position", "mean").sqrt()
    return reduce(resid.abs(), "batch position d_model -> batch position", "max") > threshold * scale


def spatial_entropy(maps: Float[Tensor, "*batch row column"]) -> Float[Tensor, "*batch"]:
    r"""Entropy, in nats, of attention over connected parts of a picture.

    Attention above the map's mean falls into parts that touch, also at corners. $H = -\sum_n P_n \ln P_n$, where $P_n$
    is part n's share of what is above the mean.

    Args:
        maps: Attention laid out as the picture's tokens stand, e.g. by `TokenMap.grid`.

    Returns:
        Zero for a head that attends to one place; infinite for an even map, which has none.

    Source:
        Kang et al. 2025, "Your Large Vision-Language Model Only Needs a Few Attention Heads for Visual Grounding"
        (arXiv 2503.06287), after Batty's spatial entropy. Their code drops what is below 0.001; ours what is below a
        thousandth of the map's maximum, so that the size of the picture does not matter.
    """
    shape = maps.shape
    flat = maps.detach().float().cpu().reshape(-1, *shape[-2:]).numpy()
    above = np.maximum(flat - flat.mean((1, 2), keepdims=True), 0)
    above[above <= 1e-3 * flat.max((1, 2), keepdims=True)] = 0
    entropies = np.full(len(flat), np.inf)
    for number, excess in enumerate(above):
        # Any: scipy's own annotation does not know that label returns a pair.
        found: Any = ndimage.label(excess > 0, np.ones((3, 3)))
        parts, n = found
        if n:
            shares = ndimage.sum_labels(excess, parts, range(1, n + 1)) / excess.sum()
            entropies[number] = max(0.0, -(shares * np.log(shares)).sum())
    return torch.from_numpy(entropies).to(maps.device, torch.float32).reshape(shape[:-2])
