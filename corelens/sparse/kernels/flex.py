"""Full and streaming heads in one call of FlexAttention, where heads of one group differ. It must be compiled."""

from functools import cache
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from corelens.sparse.kernels.shapes import check_heads

BLOCK = 64


def flex_by_head(
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    value: Float[Tensor, "batch kv_head key d_head"],
    full: Bool[Tensor, "head"],
    *,
    sink: int,
    window: int,
    scaling: float,
) -> Float[Tensor, "batch head query d_head"]:
    """Attention of a whole prompt without padding, each query head by its own rule.

    The first call of a process compiles for seconds, on CPUs with a C++ compiler. Where torch would stop compiling and
    compute all scores instead, it raises `FailOnRecompileLimitHit`.

    Args:
        query: Of all positions.
        key: Likewise.
        value: Likewise.
        full: Which query heads see all keys.
        sink: How many of the first keys the others see.
        window: How many keys up to its own a query of theirs sees.
        scaling: What scores are multiplied by.
    """
    check_heads(query, key)
    if query.shape[2] != key.shape[2]:
        raise ValueError(f"{query.shape[2]} queries and {key.shape[2]} keys: FlexAttention is used for whole prompts.")
    mask = block_mask(query.shape[2], full, sink, window)
    return _compiled()(query, key, value, block_mask=mask, scale=scaling, enable_gqa=True)


def block_mask(n: int, full: Bool[Tensor, "head"], sink: int, window: int) -> BlockMask:
    """The blocks that are read, from the rule itself: `create_block_mask` would look at all pairs."""
    # Tensors, so that other numbers do not compile anew.
    sinks, windows = (torch.tensor(number, device=full.device) for number in (sink, window))

    begin = torch.arange(-(-n // BLOCK), device=full.device) * BLOCK
    row, column, heads = begin[:, None], begin, full[:, None, None]
    end_row, end_column = row + BLOCK - 1, column + BLOCK - 1
    some = (column <= end_row) & (heads | (row - end_column < window) | (column < sink))
    every = (end_column <= row) & (heads | (end_row - column < window) | (end_column < sink))

    def listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
        blocks = blocks.expand(len(full), -1, -1)[None].int()
        return blocks.sum(-1, dtype=torch.int32), blocks.argsort(dim=-1, descending=True, stable=True).int()

    # A lambda: torch counts the arguments, which wrappers that check types hide.
    return BlockMask.from_kv_blocks(
        *listed(some & ~every),
        *listed(every),
        BLOCK_SIZE=BLOCK,
        mask_mod=lambda _, head, q, k: (k <= q) & (full[head] | (q - k < windows) | (k < sinks)),
        seq_lengths=(n, n),
    )


@cache
def _compiled() -> Any:
    # A whole graph or an error: without it, too many shapes end in eager attention over all pairs.
    return torch.compile(flex_attention, fullgraph=True)
