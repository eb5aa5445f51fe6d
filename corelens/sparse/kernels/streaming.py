"""Attention of full and of streaming heads, without any mask of the size of the sequence squared.

A query at position p of a streaming head sees the key at position q if q <= p and either q > p - window or q is kept:
the first tokens of the row (attention sinks), and whatever else a plan keeps. A full head sees all keys up to its own.
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
from corelens.sparse.kernels.reference import check_heads, empty_output, rows_of, visible_full


def causal(
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
    own = flash_cpu(query, key[:, :, past:], value[:, :, past:], scaling, causal=True)
    group = rearrange(query, "batch (kv_head group) n d_head -> batch kv_head (group n) d_head", kv_head=key.shape[1])
    before, lse = flash_cpu(group, key[:, :, :past], value[:, :, :past], scaling)
    apart = "batch kv_head (group n) ... -> batch (kv_head group) n ..."
    return merge(own, (rearrange(before, apart, n=n), rearrange(lse, apart, n=n)))


def streaming(
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    value: Float[Tensor, "batch kv_head key d_head"],
    kept_key: Float[Tensor, "batch kv_head kept d_head"],
    kept_value: Float[Tensor, "batch kv_head kept d_head"],
    seen_from: Int[Tensor, "batch kept"],
    window: int,
    scaling: float,
    out: Float[Tensor, "batch head query d_head"],
) -> None:
    """Attention of the last queries of a sequence to the keys of their window and to those that are kept.

    Args:
        query: Those of the last positions that `key` holds.
        key: All, or at least the last `window - 1` before the queries.
        value: Likewise.
        kept_key: Keys that later queries see.
        kept_value: Likewise.
        seen_from: The first query that sees each of them.
        window: At least 1.
        scaling: What scores are multiplied by.
        out: Where the result goes.
    """
    n, past = query.shape[2], key.shape[2] - query.shape[2]
    early = min(n, window - past) if past < window - 1 else 0
    if early:
        # Their window holds all that is before them.
        some = query[:, :, :early], key[:, :, : past + early], value[:, :, : past + early]
        out[:, :, :early] = causal(*some, scaling)
    # No mask is needed where all that is kept is seen.
    cut = min(n, max(early, int(seen_from.max()))) if seen_from.shape[1] else early
    flash = has_varlen(query)
    for some in (*chunks(early, cut), *([slice(cut, n)] if flash and cut < n else chunks(cut, n))):
        near = slice(past + some.start - window + 1, past + some.stop)
        around = query[:, :, some], key[:, :, near], value[:, :, near]
        if flash:
            found = varlen_attention(*around, scaling, window=(window - 1, 0))
        else:
            found = window_attention(*around, scaling, window)
        if not seen_from.shape[1]:
            out[:, :, some] = found[0]
            continue
        row = torch.arange(some.start, some.stop, device=query.device)
        visible = (seen_from[:, None] <= row[:, None])[:, None] if some.start < cut else None
        kept = partial_attention(query[:, :, some], kept_key, kept_value, scaling, visible)
        merge(found, kept, out=out[:, :, some])


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
        query: Those of the last positions that `key` holds.
        key: All positions so far, in order.
        value: Likewise.
        scaling: What scores are multiplied by.
        start: Where in `key` each left-padded row begins; None without padding.

    Returns:
        What each head found; of padding, anything finite.

    Raises:
        ValueError: If there are more queries than keys, or the heads do not divide among the kv heads.
    """
    check_heads(query, key)
    n = query.shape[2]
    if n == 1:
        real = None if start is None else torch.arange(key.shape[2], device=key.device) >= start[:, None]
        return decode_attention(query, key, value, None if real is None else real[:, None], scaling=scaling)
    if start is None:
        return causal(query, key, value, scaling)
    found = empty_output(query)
    for rows, begin in rows_of(start, len(query), together=True):
        real = max(0, min(n, key.shape[2] - begin))
        some = query[rows, :, n - real :], key[rows, :, begin:], value[rows, :, begin:]
        found[rows, :, n - real :] = causal(*some, scaling)
    return found


def streaming_attention(
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    value: Float[Tensor, "batch kv_head key d_head"],
    kept_key: Float[Tensor, "batch kv_head kept d_head"],
    kept_value: Float[Tensor, "batch kv_head kept d_head"],
    kept_position: Int[Tensor, "batch kept"],
    *,
    window: int,
    scaling: float,
    first: int = 0,
    start: Int[Tensor, "batch"] | None = None,
) -> Float[Tensor, "batch head query d_head"]:
    """Attention of streaming heads of the last queries of a sequence.

    Args:
        query: Those of the last positions that `key` holds.
        key: Positions `first`, `first + 1`, ...: all of them, or at least the last `window - 1` before the queries.
        value: Likewise.
        kept_key: Keys that every query sees that has them behind its window.
        kept_value: Likewise.
        kept_position: Where they stand in the whole sequence; -1 where there is none.
        window: How many positions up to its own a query sees; at least 1.
        scaling: What scores are multiplied by.
        first: Where in the whole sequence the first of `key` stands.
        start: Where in the whole sequence each left-padded row begins; None without padding.

    Returns:
        What each head found; of padding, anything finite.

    Raises:
        ValueError: If there are more queries than keys, the heads do not divide among the kv heads, the window is
            less than 1, or keys of the window are missing.
    """
    check_heads(query, key)
    if window < 1:
        raise ValueError(f"window={window}: a query sees at least itself, which is a window of 1.")
    past = key.shape[2] - query.shape[2]
    rows_begin = list(rows_of(start, len(query), together=has_varlen(query)))
    if past < window - 1 and first > min(begin for _, begin in rows_begin):
        raise ValueError(
            f"{past} keys before the first query, from position {first} on, do not fill a window of {window}: give the "
            f"last {window - 1}, or all from the first of the row."
        )
    found = empty_output(query)
    for rows, begin in rows_begin:
        padding = min(max(0, begin - first), key.shape[2])
        real = min(query.shape[2], key.shape[2] - padding)
        # Kept keys are seen from the position on that has them behind its window.
        position = kept_position[rows]
        seen_from = torch.where(position >= begin, position + window, torch.iinfo(position.dtype).max)
        streaming(
            query[rows, :, query.shape[2] - real :],
            key[rows, :, padding:],
            value[rows, :, padding:],
            kept_key[rows],
            kept_value[rows],
            seen_from - (first + key.shape[2] - real),
            window,
            scaling,
            out=found[rows, :, query.shape[2] - real :],
        )
    return found


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
        query: The token's.
        key: What the buffer holds.
        value: Likewise.
        visible: Which of the buffer's places hold keys that the token sees, for all heads or for each; None for all.
        scaling: What scores are multiplied by.

    Raises:
        ValueError: If the heads do not divide among the kv heads.
    """
    check_heads(query, key)
    # Heads of a group stand where queries do, so that the keys are read once for all of them.
    group = rearrange(query, "batch (kv_head group) 1 d_head -> batch kv_head group d_head", kv_head=key.shape[1])
    mask = None
    if visible is not None:
        kv_heads = 1 if visible.shape[1] == 1 else key.shape[1]
        mask = rearrange(visible, "batch (kv_head group) key -> batch kv_head group key", kv_head=kv_heads)
    found = scaled_dot_product_attention(group, key, value, attn_mask=mask, scale=scaling)
    return rearrange(found, "batch kv_head group d_head -> batch (kv_head group) 1 d_head")
