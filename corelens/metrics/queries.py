"""What every metric does with its query tokens: average over them, and insist that there are some."""

import torch
from einops import reduce
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


def require_some(**masks: Shaped[Tensor, "batch _"]) -> None:
    """Raises a ValueError that names the first mask that marks nothing in some sample, and the samples."""
    for name, mask in masks.items():
        if empty := (~mask.bool().any(-1)).nonzero().flatten().tolist():
            raise ValueError(f"`{name}` marks nothing in sample(s) {empty}: the metric is undefined there.")
