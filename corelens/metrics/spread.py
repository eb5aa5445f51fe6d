"""How widely attention is spread."""

import torch
from einops import reduce
from jaxtyping import Bool, Float
from torch import Tensor

from corelens.metrics.queries import mean_over_queries, require_some


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
    require_some(queries=queries)
    of_query = reduce(-torch.xlogy(pattern, pattern), "batch head query key -> batch head query", "sum")
    return mean_over_queries(of_query, queries)
