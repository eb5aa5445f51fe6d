"""Reference for full and streaming heads: masked attention in float64, which the kernels are tested against."""

from collections.abc import Iterator

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor


def reference(
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    value: Float[Tensor, "batch kv_head key d_head"],
    visible: Bool[Tensor, "#batch #head query key"],
    scaling: float,
) -> Float[Tensor, "batch head query d_head"]:
    """Masked softmax attention in float64, all scores at once. Queries without any visible key have outputs of zero."""
    group = query.shape[1] // key.shape[1]
    key, value = (tensor.double().repeat_interleave(group, 1) for tensor in (key, value))
    scores = scaling * einsum(query.double(), key, "b head query d, b head key d -> b head query key")
    pattern = scores.masked_fill(~visible, -torch.inf).softmax(-1).nan_to_num(0)
    return einsum(pattern, value, "b head query key, b head key d -> b head query d")


def visible_full(
    query_position: Int[Tensor, "query"],
    key_position: Int[Tensor, "key"],
    *,
    start: Int[Tensor, "batch"] | None = None,
) -> Bool[Tensor, "#batch 1 query key"]:
    """Mask of the keys that each query of a full head attends to: all from the first real token of its row to itself.

    Args:
        query_position: Absolute positions of the queries.
        key_position: Absolute positions of the keys, in any order.
        start: First real position of each left-padded row; None without padding.
    """
    causal = rearrange(key_position <= query_position[:, None], "query key -> 1 1 query key")
    return causal if start is None else causal & (key_position >= start[:, None, None, None])


def visible_streaming(
    query_position: Int[Tensor, "query"],
    key_position: Int[Tensor, "key"],
    retained: Bool[Tensor, "#batch key"],
    *,
    window: int,
    start: Int[Tensor, "batch"] | None = None,
) -> Bool[Tensor, "#batch 1 query key"]:
    """Mask of the keys that each query of a streaming head attends to: the last `window`, and those that are retained.

    Args:
        query_position: Absolute positions of the queries.
        key_position: Absolute positions of the keys, in any order.
        retained: True where every later query attends to the key, however far behind it lies.
        window: Number of positions, the query's own included; at least 1.
        start: First real position of each left-padded row; None without padding.
    """
    near = key_position > query_position[:, None] - window
    return visible_full(query_position, key_position, start=start) & (near | retained[:, None, None])


def near_or_first_blocks(
    query_position: Int[Tensor, "query"],
    key_position: Int[Tensor, "key"],
    *,
    sink: int,
    window: int,
    block: int,
    start: Int[Tensor, "batch"] | None = None,
) -> Bool[Tensor, "#batch 1 query key"]:
    """Mask of the keys in the first blocks and in the last of each query, to which causality is still to be added.

    Args:
        query_position: Absolute positions of the queries.
        key_position: Absolute positions of the keys, in any order.
        sink: Number of first blocks.
        window: Number of last blocks, that of the query included; at least 1.
        block: Number of positions of a block, counted from the first real token of a row.
        start: First real position of each left-padded row; None without padding.
    """
    begin = query_position.new_zeros(1) if start is None else start
    query_block = (query_position - begin[:, None])[:, None, :, None] // block
    key_block = (key_position - begin[:, None])[:, None, None] // block
    return (key_block < sink) | (key_block > query_block - window)


def check_shapes(
    query: Float[Tensor, "batch head query d_head"], key: Float[Tensor, "batch kv_head key d_head"]
) -> None:
    """Raise a ValueError for inputs that no kernel here can compute."""
    if torch.is_grad_enabled() and query.requires_grad:
        raise ValueError("head-sparse attention has no gradients: run it under torch.no_grad().")
    if query.shape[1] % key.shape[1]:
        raise ValueError(f"{query.shape[1]} heads do not divide among {key.shape[1]} kv heads.")
    if query.shape[2] > key.shape[2]:
        raise ValueError(
            f"{query.shape[2]} queries and {key.shape[2]} keys: the queries are the last of the keys' positions."
        )


def rows_by_start(start: Int[Tensor, "batch"] | None, batch: int, *, together: bool) -> Iterator[tuple[slice, int]]:
    """Yield slices of rows and their first real position: one for all if `together` and they start alike, else many."""
    starts = [0] * batch if start is None else start.tolist()
    if together and len(set(starts)) == 1:
        yield slice(None), starts[0]
    else:
        yield from ((slice(row, row + 1), first) for row, first in enumerate(starts))


def empty_output(query: Float[Tensor, "batch head query d_head"]) -> Float[Tensor, "batch head query d_head"]:
    """Zeros in the memory layout that attention hands on: [batch query head d_head]."""
    return torch.zeros_like(query.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
