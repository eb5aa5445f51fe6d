"""Block-sparse attention for prompts: blocks of keys chosen by sums along antidiagonals, as in XAttention.

Source:
    Xu et al. 2025, "XAttention: Block Sparse Attention with Antidiagonal Scoring" (arXiv 2503.16428), by its
    description; not compared with the authors' code.
"""

from functools import cache
from typing import Any

import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import pad

from corelens.sparse.kernels.partial import merge, partial_attention
from corelens.sparse.kernels.reference import check_heads, empty_output, rows_of


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


def block_attention(
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    value: Float[Tensor, "batch kv_head key d_head"],
    top_p: float,
    *,
    scaling: float,
    block: int = 128,
    stride: int = 8,
    start: Int[Tensor, "batch"] | None = None,
) -> Float[Tensor, "batch head query d_head"]:
    """Causal attention of a whole prompt that reads, for each block of queries, the blocks of keys that hold most.

    Args:
        query: Of all positions.
        key: Likewise.
        value: Likewise.
        top_p: How much of the estimated attention of a block of queries the blocks read hold, in (0, 1].
        scaling: What scores are multiplied by.
        block: Queries and keys of a block.
        stride: Every `stride`-th antidiagonal is summed; divides `block`. More is faster and coarser.
        start: Where each left-padded row begins; None without padding.

    Returns:
        What each head found; of padding, anything finite.

    Raises:
        ValueError: If `top_p` is outside of its range, `stride` does not divide `block`, the heads do not divide among
            the kv heads, or there are more or fewer queries than keys.
    """
    check_heads(query, key)
    if query.shape[2] != key.shape[2]:
        raise ValueError(f"{query.shape[2]} queries and {key.shape[2]} keys: blocks are chosen for whole prompts.")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p} is outside (0, 1].")
    if stride < 1 or block % stride:
        raise ValueError(f"stride={stride} does not divide block={block}.")
    found = empty_output(query)
    for rows, begin in rows_of(start, len(query), together=False):
        if begin == key.shape[2]:
            continue
        q, k, v = (tensor[rows, :, begin:] for tensor in (query, key, value))
        blocks = chosen_blocks(block_shares(q, k, scaling, block, stride), top_p)
        if has_flex(q):
            found[rows, :, begin:] = flex_blocks(q, k, v, blocks, block=block, scaling=scaling)
        else:
            _attend_blocks(q, k, v, blocks, block, scaling, out=found[rows, :, begin:])
    return found


def _attend_blocks(
    query: Float[Tensor, "1 head query d_head"],
    key: Float[Tensor, "1 kv_head query d_head"],
    value: Float[Tensor, "1 kv_head query d_head"],
    blocks: Bool[Tensor, "1 head query_block key_block"],
    block: int,
    scaling: float,
    out: Float[Tensor, "1 head query d_head"],
) -> None:
    """Block by block: the diagonal of all heads at once, under a small mask, and what is before it head by head."""
    group = query.shape[1] // key.shape[1]
    column = torch.arange(query.shape[2], device=query.device)
    for i, some in enumerate(column.split(block)):
        here = slice(int(some[0]), int(some[-1]) + 1)
        visible = (some <= some[:, None])[None, None]
        own, lse = partial_attention(query[:, :, here], key[:, :, here], value[:, :, here], scaling, visible)
        out[:, :, here] = own
        for head in blocks[0, :, i, :i].any(-1).nonzero()[:, 0].tolist():
            seen = column[: here.start][blocks[0, head, i, :i].repeat_interleave(block)]
            mine, kv_head = slice(head, head + 1), slice(head // group, head // group + 1)
            before = partial_attention(query[:, mine, here], key[:, kv_head, seen], value[:, kv_head, seen], scaling)
            merge((own[:, mine], lse[:, mine]), before, out=out[:, mine, here])


def block_shares(
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head query d_head"],
    scaling: float,
    block: int,
    stride: int,
) -> Float[Tensor, "batch head query_block key_block"]:
    """Estimated share of a query block's attention that each key block holds; rows sum to one.

    In every square of `stride` queries and keys, the scores on the antidiagonal stand for all: query r with key
    `stride - 1 - r`. Their means are the logits of a causal softmax over squares, which is averaged over the squares of
    a block. One product computes them, of vectors `stride` times as long.
    """
    n = query.shape[2]
    short = -n % block
    query, key = (pad(tensor.float(), (0, 0, 0, short)) for tensor in (query, key))
    queries = rearrange(query, "b (kv g) (square r) d -> b kv g square (r d)", kv=key.shape[1], r=stride)
    keys = rearrange(key.unflatten(2, (-1, stride)).flip(3), "b kv square r d -> b kv square (r d)")
    squares, per_block = queries.shape[3], block // stride
    column, shares = torch.arange(squares, device=query.device), []
    for row in column.split(per_block):
        scores = einsum(queries[:, :, :, row], keys, "b kv g query d, b kv key d -> b kv g query key")
        scores = (scores * (scaling / stride)).masked_fill(column > row[:, None], -torch.inf)
        # Squares of nothing but what fills the last block ask for nothing.
        real = row * stride < n
        pattern = scores.softmax(-1)[..., real, :].mean(-2)
        shares.append(reduce(pattern, "b kv g (block square) -> b (kv g) block", "sum", square=per_block))
    return torch.stack(shares, 2)


def chosen_blocks(
    shares: Float[Tensor, "batch head query_block key_block"], top_p: float
) -> Bool[Tensor, "batch head query_block key_block"]:
    """The fewest key blocks that hold `top_p` of each query block's share, and always the first and the diagonal."""
    held, order = shares.sort(dim=-1, descending=True, stable=True)
    before = pad(held.cumsum(-1)[..., :-1], (1, 0))
    # Rounded sums may reach 1 before the last block.
    needed = before < (top_p if top_p < 1 else torch.inf)
    chosen = torch.zeros_like(needed).scatter(-1, order, needed)
    row = torch.arange(shares.shape[-1], device=shares.device)
    causal = row <= row[:, None]
    return (chosen | (row == row[:, None]) | (row == 0)) & causal
