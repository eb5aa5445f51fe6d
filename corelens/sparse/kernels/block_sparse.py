"""Block-sparse attention for prompts: blocks of keys selected by sums along antidiagonals, as in XAttention.

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
from corelens.sparse.kernels.reference import check_shapes, empty_output, rows_by_start


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
    """Causal attention of a whole prompt that reads, for each block of queries, the key blocks with most attention.

    Args:
        query: Queries of all positions.
        key: Keys of all positions.
        value: Values of all positions.
        top_p: Share of a query block's estimated attention that the selected key blocks hold, in (0, 1].
        scaling: Factor on the products of queries and keys.
        block: Number of queries and of keys of a block.
        stride: Distance of the antidiagonals that are summed; divides `block`. More is faster and coarser.
        start: Position at which each left-padded row begins; None without padding.

    Returns:
        Head outputs; anything finite at padding.

    Raises:
        ValueError: If `top_p` is outside of its range, `stride` does not divide `block`, the heads do not divide among
            the kv heads, or there are more or fewer queries than keys.
    """
    check_shapes(query, key)
    if query.shape[2] != key.shape[2]:
        raise ValueError(f"{query.shape[2]} queries and {key.shape[2]} keys: blocks are selected for whole prompts.")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p} is outside (0, 1].")
    if stride < 1 or block % stride:
        raise ValueError(f"stride={stride} does not divide block={block}.")
    outputs = empty_output(query)
    for rows, begin in rows_by_start(start, len(query), together=False):
        if begin == key.shape[2]:
            continue
        q, k, v = (tensor[rows, :, begin:] for tensor in (query, key, value))
        blocks = select_blocks(block_shares(q, k, scaling, block, stride), top_p)
        if has_flex(q):
            outputs[rows, :, begin:] = flex_blocks(q, k, v, blocks, block=block, scaling=scaling)
        else:
            _attend_blocks(q, k, v, blocks, block, scaling, out=outputs[rows, :, begin:])
    return outputs


def block_shares(
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head query d_head"],
    scaling: float,
    block: int,
    stride: int,
) -> Float[Tensor, "batch head query_block key_block"]:
    """Estimate the share of each query block's attention that each key block holds; rows sum to one.

    In every square of `stride` queries and keys, the scores on the antidiagonal stand for all: query r with key
    `stride - 1 - r`. Their means are the logits of a causal softmax over squares, which is averaged over the squares of
    a block. One product computes them, of vectors `stride` times as long.
    """
    n = query.shape[2]
    padding = -n % block
    query, key = (pad(tensor.float(), (0, 0, 0, padding)) for tensor in (query, key))
    queries = rearrange(query, "b (kv g) (square r) d -> b kv g square (r d)", kv=key.shape[1], r=stride)
    keys = rearrange(key.unflatten(2, (-1, stride)).flip(3), "b kv square r d -> b kv square (r d)")
    squares, per_block = queries.shape[3], block // stride
    column, shares = torch.arange(squares, device=query.device), []
    for row in column.split(per_block):
        scores = einsum(queries[:, :, :, row], keys, "b kv g query d, b kv key d -> b kv g query key")
        scores = (scores * (scaling / stride)).masked_fill(column > row[:, None], -torch.inf)
        # Squares of padding alone, at the end of the last block, do not count.
        real = row * stride < n
        pattern = scores.softmax(-1)[..., real, :].mean(-2)
        shares.append(reduce(pattern, "b kv g (block square) -> b (kv g) block", "sum", square=per_block))
    return torch.stack(shares, 2)


def select_blocks(
    shares: Float[Tensor, "batch head query_block key_block"], top_p: float
) -> Bool[Tensor, "batch head query_block key_block"]:
    """Mask of the fewest key blocks that hold `top_p` of each query block's share, with the first and the diagonal."""
    sorted_shares, order = shares.sort(dim=-1, descending=True, stable=True)
    preceding = pad(sorted_shares.cumsum(-1)[..., :-1], (1, 0))
    # Rounded sums may reach 1 before the last block.
    needed = preceding < (top_p if top_p < 1 else torch.inf)
    selected = torch.zeros_like(needed).scatter(-1, order, needed)
    row = torch.arange(shares.shape[-1], device=shares.device)
    causal = row <= row[:, None]
    return (selected | (row == row[:, None]) | (row == 0)) & causal


def _attend_blocks(
    query: Float[Tensor, "1 head query d_head"],
    key: Float[Tensor, "1 kv_head query d_head"],
    value: Float[Tensor, "1 kv_head query d_head"],
    blocks: Bool[Tensor, "1 head query_block key_block"],
    block: int,
    scaling: float,
    out: Float[Tensor, "1 head query d_head"],
) -> None:
    """Attend block by block: to the diagonal for all heads at once, under a small mask, and before it head by head."""
    group_size = query.shape[1] // key.shape[1]
    column = torch.arange(query.shape[2], device=query.device)
    for i, positions in enumerate(column.split(block)):
        diagonal = slice(int(positions[0]), int(positions[-1]) + 1)
        visible = (positions <= positions[:, None])[None, None]
        outputs, lse = partial_attention(
            query[:, :, diagonal], key[:, :, diagonal], value[:, :, diagonal], scaling, visible
        )
        out[:, :, diagonal] = outputs
        for index in blocks[0, :, i, :i].any(-1).nonzero()[:, 0].tolist():
            keys = column[: diagonal.start][blocks[0, index, i, :i].repeat_interleave(block)]
            head, kv_head = slice(index, index + 1), slice(index // group_size, index // group_size + 1)
            previous = partial_attention(
                query[:, head, diagonal], key[:, kv_head, keys], value[:, kv_head, keys], scaling
            )
            merge((outputs[:, head], lse[:, head]), previous, out=out[:, head, diagonal])


def flex_blocks(
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head query d_head"],
    value: Float[Tensor, "batch kv_head query d_head"],
    blocks: Bool[Tensor, "#batch #head query_block key_block"],
    *,
    block: int,
    scaling: float,
) -> Float[Tensor, "batch head query d_head"]:
    """Causal attention of a whole prompt to selected blocks of keys, by FlexAttention.

    The first call of a process compiles for seconds, on CPUs with a C++ compiler. Where torch would stop compiling and
    compute all scores instead, it raises `FailOnRecompileLimitHit`.

    Args:
        query: Queries of all positions.
        key: Keys of all positions.
        value: Values of all positions.
        blocks: Mask of the blocks of keys that each block of queries reads; none above the diagonal.
        block: Number of queries and of keys of a block, a power of two.
        scaling: Factor on the products of queries and keys.
    """
    n, row = query.shape[2], torch.arange(blocks.shape[2], device=query.device)
    diagonal = row == row[:, None]

    def counts_and_indices(selected: Bool[Tensor, "#batch #head query_block key_block"]) -> tuple[Tensor, Tensor]:
        indices = selected.int().argsort(dim=-1, descending=True, stable=True).int()
        return selected.sum(-1, dtype=torch.int32), indices

    # A lambda: torch counts the arguments, which wrappers that check types hide.
    mask = BlockMask.from_kv_blocks(
        *counts_and_indices(blocks & diagonal),
        *counts_and_indices(blocks & ~diagonal),
        BLOCK_SIZE=block,
        mask_mod=lambda _, head, q, k: k <= q,
        seq_lengths=(n, n),
    )
    return _compiled_flex_attention()(query, key, value, block_mask=mask, scale=scaling, enable_gqa=True)


@cache
def _compiled_flex_attention() -> Any:
    # With fullgraph, too many shapes are an error; without it they would end in eager attention over all pairs.
    return torch.compile(flex_attention, fullgraph=True)


def has_flex(tensor: Tensor) -> bool:
    """True if compiling pays: on CPUs a loop over blocks is as fast, and starts at once."""
    return tensor.is_cuda
