"""Attention of full and of streaming heads, without any mask of the size of the sequence squared.

A query at position p of a streaming head sees the key at position q if q <= p and either q > p - window or q is kept:
the first tokens of the row (attention sinks), and whatever else a plan keeps. A full head sees all keys up to its own.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from corelens.sparse.reference import reference, visible_full


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
    _check(query, key)
    position = torch.arange(key.shape[2], device=key.device)
    visible = visible_full(position[-query.shape[2] :], position, start=start)
    return reference(query, key, value, visible, scaling).to(query)


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
    _check(query, key)
    if window < 1:
        raise ValueError(f"window={window}: a query sees at least itself, which is a window of 1.")
    past = key.shape[2] - query.shape[2]
    if first > 0 and past < window - 1:
        raise ValueError(
            f"{past} keys before the first query, at position {first + past}, do not fill a window of {window}: give "
            f"the last {window - 1}, or all from position 0."
        )
    position = torch.arange(first, first + key.shape[2], device=key.device)
    query_position = position[past:]
    near = visible_full(query_position, position, start=start) & (position > query_position[:, None] - window)
    far = (kept_position >= 0)[:, None] & (kept_position[:, None] <= query_position[:, None] - window)
    if start is not None:
        far &= kept_position[:, None] >= start[:, None, None]
    visible = torch.cat([far[:, None], near.expand(len(far), -1, -1, -1)], -1)
    key, value = torch.cat([kept_key, key], 2), torch.cat([kept_value, value], 2)
    return reference(query, key, value, visible, scaling).to(query)


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
        visible: Which of the buffer's places hold keys that the token sees; None for all.
        scaling: What scores are multiplied by.

    Raises:
        ValueError: If the heads do not divide among the kv heads.
    """
    _check(query, key)
    if visible is None:
        visible = torch.ones(len(key), 1, key.shape[2], dtype=torch.bool, device=key.device)
    return reference(query, key, value, visible[:, :, None], scaling).to(query)


def _check(query: Tensor, key: Tensor) -> None:
    if query.shape[1] % key.shape[1]:
        raise ValueError(f"{query.shape[1]} heads do not divide among {key.shape[1]} kv heads.")
    if query.shape[2] > key.shape[2]:
        raise ValueError(
            f"{query.shape[2]} queries and {key.shape[2]} keys: the queries are the last of the keys' positions."
        )


def block_attention(query, key, value, top_p, *, scaling, start=None):
    raise NotImplementedError
