"""Attention over all keys from attention over some and attention over the others."""

import torch
from jaxtyping import Float
from torch import Tensor

Found = tuple[Float[Tensor, "batch head query d_head"], Float[Tensor, "batch head query"]]
"""What heads found among some keys, and the log-sum-exp of their scores: -inf where a query saw none of the keys."""


def merge(some: Found, others: Found, out: Float[Tensor, "batch head query d_head"] | None = None) -> Tensor:
    """What heads find among the keys of both, which must be different keys. Every query must see some of the first."""
    share = torch.sigmoid(others[1] - some[1])[..., None]
    return torch.lerp(some[0], others[0], share.to(some[0]), out=out)
