"""Sliding windows without a kernel for them: blocks of queries, each with its slice of the keys."""

from collections.abc import Iterator

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from corelens.sparse.kernels.merging import Found
from corelens.sparse.kernels.partial import attend

BLOCK = 32
"""Queries of a block, which reads `window + 31` keys: fewer waste less, more make larger matrix products. The fastest
of 16, 32, 64 and 128 on a CPU, for windows of 256 and 512."""

PIECE = 1024
"""Queries computed together, so that what is between the steps stays in the cache of the processor."""


def pieces(begin: int, end: int) -> Iterator[slice]:
    """The queries from `begin` to `end` in slices of whole blocks, and one of what is left."""
    whole = end - (end - begin) % BLOCK
    yield from (slice(some, min(some + PIECE, whole)) for some in range(begin, whole, PIECE))
    if whole < end:
        yield slice(whole, end)


def window_attention(
    query: Float[Tensor, "1 head query d_head"],
    key: Float[Tensor, "1 kv_head key d_head"],
    value: Float[Tensor, "1 kv_head key d_head"],
    scaling: float,
    window: int,
) -> Found:
    """Attention of each query to itself and the `window - 1` keys before it, of one of the `pieces` of one row.

    Blocks are the batch of one call: their slices of the keys overlap and are read in place, under one small mask.

    Args:
        query: Whole blocks, or less than one.
        key: The `window - 1` before the first query, and those of the queries.
        value: Likewise.
        scaling: What scores are multiplied by.
        window: At least 1.
    """
    size = min(BLOCK, query.shape[2])
    length = size + window - 1
    row, column = torch.arange(size, device=query.device)[:, None], torch.arange(length, device=query.device)
    visible = ((column >= row) & (column < row + window))[None, None]
    blocks = rearrange(query, "1 head (block row) d_head -> block head row d_head", row=size)
    keys, values = (
        rearrange(tensor.unfold(2, length, size), "1 kv_head block d_head key -> block kv_head key d_head")
        for tensor in (key, value)
    )
    found, lse = attend(blocks, keys, values, scaling, visible)
    together = "block head row ... -> 1 head (block row) ..."
    return rearrange(found, together), rearrange(lse, together)
