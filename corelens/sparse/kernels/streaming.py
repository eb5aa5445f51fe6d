"""Attention of full and of streaming heads, without any mask of the size of the sequence squared.

A query at position p of a streaming head attends to the key at position q if q <= p and either q > p - window or q is
retained: the first tokens of the row (attention sinks), and whatever else a plan keeps. A full head attends to all keys
up to its own.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from corelens.sparse.kernels.partial import (
    chunks,
    flash_cpu,
    has_varlen,
    merge,
    partial_attention,
    varlen_attention,
    window_attention,
)
from corelens.sparse.kernels.reference import check_shapes, empty_output, rows_by_start, visible_full


def full_attention(
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    value: Float[Tensor, "batch kv_head key d_head"],
    *,
    scaling: float,
    start: Int[Tensor, "batch"] | None = None,
) -> Float[Tensor, "batch head query d_head"]:
    """Causal attention of the last queries of a sequence: a prompt, a part of one, or one token.

    Args:
        query: Queries of the last positions that `key` holds.
        key: Keys of all positions so far, in order.
        value: Values at the same positions.
        scaling: Factor on the products of queries and keys.
        start: Position in `key` at which each left-padded row begins; None without padding.

    Returns:
        Head outputs; anything finite at padding.

    Raises:
        ValueError: If there are more queries than keys, or the heads do not divide among the kv heads.
    """
    check_shapes(query, key)
    n = query.shape[2]
    if n == 1:
        real = None if start is None else torch.arange(key.shape[2], device=key.device) >= start[:, None]
        return decode_attention(query, key, value, None if real is None else real[:, None], scaling=scaling)
    if start is None:
        return unpadded_full_attention(query, key, value, scaling)
    outputs = empty_output(query)
    for rows, begin in rows_by_start(start, len(query), together=True):
        n_real = max(0, min(n, key.shape[2] - begin))
        unpadded = query[rows, :, n - n_real :], key[rows, :, begin:], value[rows, :, begin:]
        outputs[rows, :, n - n_real :] = unpadded_full_attention(*unpadded, scaling)
    return outputs


def streaming_attention(
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    value: Float[Tensor, "batch kv_head key d_head"],
    retained_key: Float[Tensor, "batch kv_head retained d_head"],
    retained_value: Float[Tensor, "batch kv_head retained d_head"],
    retained_position: Int[Tensor, "batch retained"],
    *,
    window: int,
    scaling: float,
    first: int = 0,
    start: Int[Tensor, "batch"] | None = None,
) -> Float[Tensor, "batch head query d_head"]:
    """Attention of streaming heads of the last queries of a sequence.

    Args:
        query: Queries of the last positions that `key` holds.
        key: Keys of positions `first`, `first + 1`, ...: all of them, or at least the last `window - 1` before the
            queries.
        value: Values at the same positions.
        retained_key: Keys that every query attends to that has them behind its window.
        retained_value: Values at the same positions.
        retained_position: Their positions in the whole sequence; -1 where there is none.
        window: Number of positions that a query attends to, its own included; at least 1.
        scaling: Factor on the products of queries and keys.
        first: Position in the whole sequence of the first of `key`.
        start: Position in the whole sequence at which each left-padded row begins; None without padding.

    Returns:
        Head outputs; anything finite at padding.

    Raises:
        ValueError: If there are more queries than keys, the heads do not divide among the kv heads, the window is
            less than 1, or keys of the window are missing.
    """
    check_shapes(query, key)
    if window < 1:
        raise ValueError(f"window={window}: a query attends to at least itself, which is a window of 1.")
    past = key.shape[2] - query.shape[2]
    row_starts = list(rows_by_start(start, len(query), together=has_varlen(query)))
    if past < window - 1 and first > min(begin for _, begin in row_starts):
        raise ValueError(
            f"{past} keys before the first query, from position {first} on, do not fill a window of {window}: give the "
            f"last {window - 1}, or all from the first of the row."
        )
    outputs = empty_output(query)
    for rows, begin in row_starts:
        padding = min(max(0, begin - first), key.shape[2])
        n_real = min(query.shape[2], key.shape[2] - padding)
        # Retained keys are visible from the position on that has them behind its window.
        position = retained_position[rows]
        visible_from = torch.where(position >= begin, position + window, torch.iinfo(position.dtype).max)
        unpadded_streaming_attention(
            query[rows, :, query.shape[2] - n_real :],
            key[rows, :, padding:],
            value[rows, :, padding:],
            retained_key[rows],
            retained_value[rows],
            visible_from - (first + key.shape[2] - n_real),
            window,
            scaling,
            out=outputs[rows, :, query.shape[2] - n_real :],
        )
    return outputs


def decode_attention(
    query: Float[Tensor, "batch head 1 d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    value: Float[Tensor, "batch kv_head key d_head"],
    visible: Bool[Tensor, "batch #head key"] | None,
    *,
    scaling: float,
) -> Float[Tensor, "batch head 1 d_head"]:
    """Attention of one token per row over a buffer in any order, such as sinks followed by a ring.

    Args:
        query: Query of the token.
        key: Keys in the buffer.
        value: Values in the buffer.
        visible: Mask of the buffer's slots that the token attends to, for all heads or for each; None for all.
        scaling: Factor on the products of queries and keys.

    Raises:
        ValueError: If the heads do not divide among the kv heads.
    """
    check_shapes(query, key)
    # Heads of a group take the place of queries, so that the keys are read once for all of them.
    group = rearrange(query, "batch (kv_head group) 1 d_head -> batch kv_head group d_head", kv_head=key.shape[1])
    mask = None
    if visible is not None:
        kv_heads = 1 if visible.shape[1] == 1 else key.shape[1]
        mask = rearrange(visible, "batch (kv_head group) key -> batch kv_head group key", kv_head=kv_heads)
    outputs = scaled_dot_product_attention(group, key, value, attn_mask=mask, scale=scaling)
    return rearrange(outputs, "batch kv_head group d_head -> batch (kv_head group) 1 d_head")


def unpadded_full_attention(
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    value: Float[Tensor, "batch kv_head key d_head"],
    scaling: float,
) -> Float[Tensor, "batch head query d_head"]:
    """Attention of the last queries of a sequence to all keys up to their own."""
    n, past = query.shape[2], key.shape[2] - query.shape[2]
    if past == 0:
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
    if has_varlen(query):
        return varlen_attention(query, key, value, scaling)[0]
    if query.device.type != "cpu":
        position = torch.arange(past + n, device=query.device)
        visible = visible_full(position[past:], position)
        return scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=scaling, enable_gqa=True)
    to_new = flash_cpu(query, key[:, :, past:], value[:, :, past:], scaling, causal=True)
    group = rearrange(query, "batch (kv_head group) n d_head -> batch kv_head (group n) d_head", kv_head=key.shape[1])
    to_past, lse = flash_cpu(group, key[:, :, :past], value[:, :, :past], scaling)
    by_head = "batch kv_head (group n) ... -> batch (kv_head group) n ..."
    return merge(to_new, (rearrange(to_past, by_head, n=n), rearrange(lse, by_head, n=n)))


def unpadded_streaming_attention(
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    value: Float[Tensor, "batch kv_head key d_head"],
    retained_key: Float[Tensor, "batch kv_head retained d_head"],
    retained_value: Float[Tensor, "batch kv_head retained d_head"],
    visible_from: Int[Tensor, "batch retained"],
    window: int,
    scaling: float,
    out: Float[Tensor, "batch head query d_head"],
) -> None:
    """Attention of the last queries of a sequence to the keys of their window and to those that are retained.

    Args:
        query: Queries of the last positions that `key` holds.
        key: Keys of all positions, or at least of the last `window - 1` before the queries.
        value: Values at the same positions.
        retained_key: Keys that later queries attend to.
        retained_value: Values at the same positions.
        visible_from: Index of the first query that attends to each of them.
        window: Number of positions that a query attends to, its own included; at least 1.
        scaling: Factor on the products of queries and keys.
        out: Tensor that the result is written to.
    """
    n, past = query.shape[2], key.shape[2] - query.shape[2]
    early = min(n, window - past) if past < window - 1 else 0
    if early:
        # Their window holds all positions before them.
        prefix = query[:, :, :early], key[:, :, : past + early], value[:, :, : past + early]
        out[:, :, :early] = unpadded_full_attention(*prefix, scaling)
    # No mask is needed where all retained keys are visible.
    cut = min(n, max(early, int(visible_from.max()))) if visible_from.shape[1] else early
    varlen = has_varlen(query)
    for queries in (*chunks(early, cut), *([slice(cut, n)] if varlen and cut < n else chunks(cut, n))):
        near = slice(past + queries.start - window + 1, past + queries.stop)
        qkv = query[:, :, queries], key[:, :, near], value[:, :, near]
        if varlen:
            to_window = varlen_attention(*qkv, scaling, window=(window - 1, 0))
        else:
            to_window = window_attention(*qkv, scaling, window)
        if not visible_from.shape[1]:
            out[:, :, queries] = to_window[0]
            continue
        row = torch.arange(queries.start, queries.stop, device=query.device)
        visible = (visible_from[:, None] <= row[:, None])[:, None] if queries.start < cut else None
        to_retained = partial_attention(query[:, :, queries], retained_key, retained_value, scaling, visible)
        merge(to_window, to_retained, out=out[:, :, queries])
