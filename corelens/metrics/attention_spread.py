"""Spread of attention: entropy, concentration, distance, attention sinks and spatial entropy."""

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
        queries: Mask of the rows of `pattern` that are query tokens.

    Returns:
        Zero for a head that attends to one key, ln n for one that attends evenly to n keys.

    Raises:
        ValueError: If a sample has no query token.

    Examples:
        >>> attention_entropy(torch.full((1, 1, 1, 4), 0.25), torch.tensor([[True]])).exp()
        tensor([[4.]])
    """
    require_queries(queries=queries)
    entropies = reduce(torch.special.entr(pattern), "batch head query key -> batch head query", "sum")
    return mean_over_queries(entropies, queries)


def concentration(
    pattern: Float[Tensor, "batch head query key"], queries: Bool[Tensor, "batch query"]
) -> Float[Tensor, "batch head"]:
    r"""Probability that two draws from a row hit the same key, averaged over the query tokens.

    $$C_h = \frac{1}{|Q|} \sum_{q \in Q} \sum_k A_{h,q,k}^2$$

    Args:
        pattern: Attention probabilities after softmax.
        queries: Mask of the rows of `pattern` that are query tokens.

    Returns:
        One for a head that attends to one key, 1 / n for one that attends evenly to n keys.

    Raises:
        ValueError: If a sample has no query token.
    """
    require_queries(queries=queries)
    collision_probabilities = reduce(pattern**2, "batch head query key -> batch head query", "sum")
    return mean_over_queries(collision_probabilities, queries)


def attention_distance(
    pattern: Float[Tensor, "batch head query key"],
    queries: Bool[Tensor, "batch query"],
    positions: Int[Tensor, "batch query"],
) -> Float[Tensor, "batch head"]:
    """Mean distance from query token to attended key of each head, in positions.

    Args:
        pattern: Attention probabilities after softmax; key k stands at position k.
        queries: Mask of the rows of `pattern` that are query tokens.
        positions: Position in the sequence of each row's query token.

    Returns:
        Zero for a head that attends to the query token itself. Where rows sum to less than one (sinks without a
        token), the rest counts as zero distance.

    Raises:
        ValueError: If a sample has no query token.
    """
    require_queries(queries=queries)
    distances = positions[..., None] - torch.arange(pattern.shape[-1], device=pattern.device)
    mean_distances = reduce(pattern * distances[:, None], "batch head query key -> batch head query", "sum")
    return mean_over_queries(mean_distances, queries)


def attention_sinks(
    resid: Float[Tensor, "batch position d_model"], threshold: float | int = 20.0
) -> Bool[Tensor, "batch position"]:
    """Mask of attention sinks: positions with a massive activation in the residual stream.

    A position is a sink if a coordinate of its residual stream is more than `threshold` times their root mean square.
    These coordinates differ between models, so all of them are tested.

    Args:
        resid: The residual stream at the start of the layer, `hook_resid_pre`.
        threshold: No position of a model narrower than `threshold` squared can reach it.

    Source:
        Kang et al. 2025, "See What You Are Told: Visual Attention Sink" (ICLR 2025), with threshold 20; theirs tests
        two coordinates that are known beforehand for each model, ours all of them.
    """
    resid = resid.float()
    scale = reduce(resid**2, "batch position d_model -> batch position", "mean").sqrt()
    return reduce(resid.abs(), "batch position d_model -> batch position", "max") > threshold * scale


def spatial_entropy(maps: Float[Tensor, "*batch row column"]) -> Float[Tensor, "*batch"]:
    r"""Entropy, in nats, of attention over the connected parts of a picture.

    Attention above the map's mean forms connected parts (tokens that touch at a corner are connected).
    $H = -\sum_n P_n \ln P_n$, where $P_n$ is part n's share of the attention above the mean.

    Args:
        maps: Attention on the grid of the picture's tokens, e.g. by `TokenMap.grid`.

    Returns:
        Zero for a head that attends to one part; infinite for an even map, which has no part.

    Source:
        Kang et al. 2025, "Your Large Vision-Language Model Only Needs a Few Attention Heads for Visual Grounding"
        (arXiv 2503.06287), after Batty's spatial entropy. Their code drops values below 0.001; ours, values below a
        thousandth of the map's maximum, so that the size of the picture does not matter.
    """
    shape = maps.shape
    flat = maps.detach().float().cpu().reshape(-1, *shape[-2:]).numpy()
    above = np.maximum(flat - flat.mean((1, 2), keepdims=True), 0)
    above[above <= 1e-3 * flat.max((1, 2), keepdims=True)] = 0
    entropies = np.full(len(flat), np.inf)
    for index, excess in enumerate(above):
        # Any: scipy's own annotation does not know that label returns a pair.
        labelled: Any = ndimage.label(excess > 0, np.ones((3, 3)))
        labels, n_parts = labelled
        if n_parts:
            shares = ndimage.sum_labels(excess, labels, range(1, n_parts + 1)) / excess.sum()
            entropies[index] = max(0.0, -(shares * np.log(shares)).sum())
    return torch.from_numpy(entropies).to(maps.device, torch.float32).reshape(shape[:-2])
