"""What the kernels ask of heads, and how they go through padded rows."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor


def rows_of(start: Int[Tensor, "batch"] | None, batch: int, *, together: bool) -> Iterator[tuple[slice, int]]:
    """Rows and where they begin: all in one if they may be and begin alike, else one by one."""
    begins = [0] * batch if start is None else start.tolist()
    if together and len(set(begins)) == 1:
        yield slice(None), begins[0]
    else:
        yield from ((slice(row, row + 1), begin) for row, begin in enumerate(begins))


def empty_output(query: Float[Tensor, "batch head query d_head"]) -> Float[Tensor, "batch head query d_head"]:
    """Zeros in the order of memory that attention hands on: [batch query head d_head]."""
    return torch.zeros_like(query.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)


def check_heads(
    query: Float[Tensor, "batch head query d_head"], key: Float[Tensor, "batch kv_head key d_head"]
) -> None:
    """ValueErrors for what no kernel here can compute."""
    if torch.is_grad_enabled() and query.requires_grad:
        raise ValueError("head-sparse attention has no gradients: run it under torch.no_grad().")
    if query.shape[1] % key.shape[1]:
        raise ValueError(f"{query.shape[1]} heads do not divide among {key.shape[1]} kv heads.")
    if query.shape[2] > key.shape[2]:
        raise ValueError(
            f"{query.shape[2]} queries and {key.shape[2]} keys: the queries are the last of the keys' positions."
        )
