"""Chosen blocks of keys in one call of FlexAttention, on GPUs. It must be compiled."""

from functools import cache
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention


def has_flex(tensor: Tensor) -> bool:
    """Whether compiling pays: on CPUs a loop over blocks is as fast, and starts at once."""
    return tensor.is_cuda


def flex_blocks(
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head query d_head"],
    value: Float[Tensor, "batch kv_head query d_head"],
    blocks: Bool[Tensor, "batch head query_block key_block"],
    *,
    block: int,
    scaling: float,
) -> Float[Tensor, "batch head query d_head"]:
    """Causal attention of a whole prompt to the chosen blocks of keys.

    The first call of a process compiles for seconds, on CPUs with a C++ compiler. Where torch would stop compiling and
    compute all scores instead, it raises `FailOnRecompileLimitHit`.

    Args:
        query: Of all positions.
        key: Likewise.
        value: Likewise.
        blocks: Which blocks of keys each block of queries reads; none above the diagonal.
        block: Queries and keys of a block, a power of two.
        scaling: What scores are multiplied by.
    """
    n, row = query.shape[2], torch.arange(blocks.shape[2], device=query.device)
    diagonal = row == row[:, None]

    def listed(some: Bool[Tensor, "batch head query_block key_block"]) -> tuple[Tensor, Tensor]:
        return some.sum(-1, dtype=torch.int32), some.int().argsort(dim=-1, descending=True, stable=True).int()

    # A lambda: torch counts the arguments, which wrappers that check types hide.
    mask = BlockMask.from_kv_blocks(
        *listed(blocks & diagonal),
        *listed(blocks & ~diagonal),
        BLOCK_SIZE=block,
        mask_mod=lambda _, head, q, k: k <= q,
        seq_lengths=(n, n),
    )
    return _compiled()(query, key, value, block_mask=mask, scale=scaling, enable_gqa=True)


@cache
def _compiled() -> Any:
    # A whole graph or an error: without it, too many shapes end in eager attention over all pairs.
    return torch.compile(flex_attention, fullgraph=True)
