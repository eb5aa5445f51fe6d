"""Attention of heads that stream blocks, to the first and the last of a prompt, without any mask of its full size."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from corelens.sparse.kernels.block_sparse import flex_blocks, has_flex
from corelens.sparse.kernels.partial import CHUNK, causal_attention, merge, partial_attention
from corelens.sparse.kernels.reference import check_shapes, empty_output, rows_by_start
from corelens.sparse.kernels.streaming import unpadded_full_attention


def block_streaming_attention(
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    value: Float[Tensor, "batch kv_head key d_head"],
    *,
    sink: int,
    window: int,
    block: int,
    scaling: float,
    start: Int[Tensor, "batch"] | None = None,
) -> Float[Tensor, "batch head query d_head"]:
    """Causal attention of the last queries of a sequence to the first blocks of keys, and to the last up to their own.

    Args:
        query: Queries of the last positions that `key` holds.
        key: Keys of all positions so far, in order.
        value: Values at the same positions.
        sink: Number of first blocks.
        window: Number of last blocks, that of the query included; at least 1.
        block: Number of positions of a block, counted from the first real token of a row.
        scaling: Factor on the products of queries and keys.
        start: Position in `key` at which each left-padded row begins; None without padding.

    Returns:
        Head outputs; anything finite at padding.

    Raises:
        ValueError: If there are more queries than keys, or the heads do not divide among the kv heads.
    """
    check_shapes(query, key)
    n = query.shape[2]
    outputs = empty_output(query)
    for rows, begin in rows_by_start(start, len(query), together=True):
        n_real = min(n, key.shape[2] - begin)
        if n_real > 0:
            unpadded = query[rows, :, n - n_real :], key[rows, :, begin:], value[rows, :, begin:]
            _attend(*unpadded, sink, window, block, scaling, out=outputs[rows, :, n - n_real :])
    return outputs


def _attend(
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    value: Float[Tensor, "batch kv_head key d_head"],
    sink: int,
    window: int,
    block: int,
    scaling: float,
    out: Float[Tensor, "batch head query d_head"],
) -> None:
    """Attend without padding: by several blocks of queries to their own, to those before them and to the sinks."""
    n, past = query.shape[2], key.shape[2] - query.shape[2]
    # Before this position, sinks and window leave no gap.
    first_gap = min(past + n, max(past, (sink + window) * block))
    # FlexAttention has tiles of 128.
    if past == 0 and first_gap < n and has_flex(query) and block % 128 == 0:
        row = torch.arange(-(-n // block), device=query.device)
        blocks = (row <= row[:, None]) & ((row < sink) | (row > row[:, None] - window))
        out[:] = flex_blocks(query, key, value, blocks[None, None], block=block, scaling=scaling)
        return
    if first_gap > past:
        prefix = query[:, :, : first_gap - past], key[:, :, :first_gap], value[:, :, :first_gap]
        out[:, :, : first_gap - past] = unpadded_full_attention(*prefix, scaling)
    together = max(1, min(window, CHUNK // block))
    while first_gap < past + n:
        number = first_gap // block
        own = slice(first_gap, min(past + n, (number + together) * block))
        last = (own.stop - 1) // block
        queries = query[:, :, own.start - past : own.stop - past]
        outputs, lse = causal_attention(queries, key[:, :, own], value[:, :, own], scaling)
        # Blocks that all these queries attend to, and then those that have left the window of the last of them.
        for keys in (slice((last - window + 1) * block, own.start), slice(0, sink * block)):
            if keys.start < keys.stop:
                further = partial_attention(queries, key[:, :, keys], value[:, :, keys], scaling)
                outputs, lse = merge((outputs, lse), further), torch.logaddexp(lse, further[1])
        for row in range(number, last):
            rows = slice(max(row * block, own.start) - own.start, (row + 1) * block - own.start)
            keys = slice((row - window + 1) * block, (last - window + 1) * block)
            further = partial_attention(queries[:, :, rows], key[:, :, keys], value[:, :, keys], scaling)
            outputs[:, :, rows] = merge((outputs[:, :, rows], lse[:, :, rows]), further)
        out[:, :, own.start - past : own.stop - past] = outputs
        first_gap = own.stop
