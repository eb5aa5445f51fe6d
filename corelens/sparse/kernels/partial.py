"""Attention over some of the keys, with the log-sum-exp of its scores, by the kernel that the device has for it."""

from collections.abc import Iterator

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor

PartialAttention = tuple[Float[Tensor, "batch head query d_head"], Float[Tensor, "batch head query"]]
"""Head outputs over some keys, and the log-sum-exp of their scores: -inf where a query attends to none of the keys."""

BLOCK = 32
"""Queries of a block, which reads `window + 31` keys: fewer waste less, more make larger matrix products. The fastest
of 16, 32, 64 and 128 on a CPU, for windows of 256 and 512."""

CHUNK = 1024
"""Queries computed together, so that intermediate results stay in the processor's cache."""


def merge(
    first: PartialAttention, second: PartialAttention, out: Float[Tensor, "batch head query d_head"] | None = None
) -> Tensor:
    """Merge attention over two disjoint sets of keys. Every query must attend to some of the first."""
    share = torch.sigmoid(second[1] - first[1])[..., None]
    return torch.lerp(first[0], second[0], share.to(first[0]), out=out)


def partial_attention(
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    value: Float[Tensor, "batch kv_head key d_head"],
    scaling: float,
    visible: Bool[Tensor, "#batch 1 query key"] | None = None,
) -> PartialAttention:
    """Attention over the given keys alone, all or those that are visible, by the fastest kernel of the device."""
    if visible is None and has_varlen(query):
        return varlen_attention(query, key, value, scaling, window=(-1, -1))
    if query.device.type == "cpu":
        return flash_cpu(query, key, value, scaling, visible)
    return eager_partial_attention(query, key, value, scaling, visible)


def causal_attention(
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head query d_head"],
    value: Float[Tensor, "batch kv_head query d_head"],
    scaling: float,
) -> PartialAttention:
    """Attention of every query to the keys up to its own position, of as many, by the fastest kernel of the device."""
    if has_varlen(query):
        return varlen_attention(query, key, value, scaling)
    if query.device.type == "cpu":
        return flash_cpu(query, key, value, scaling, causal=True)
    n = query.shape[2]
    visible = torch.ones(1, 1, n, n, dtype=torch.bool, device=query.device).tril()
    return eager_partial_attention(query, key, value, scaling, visible)


def flash_cpu(
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    value: Float[Tensor, "batch kv_head key d_head"],
    scaling: float,
    visible: Bool[Tensor, "#batch 1 query key"] | None = None,
    *,
    causal: bool = False,
) -> PartialAttention:
    """Attention by the kernel that SDPA runs on CPUs. It reads the keys of groups in place; SDPA drops its log-sum-exp.

    Args:
        query: Queries, in any layout whose last axis is contiguous.
        key: Keys, likewise.
        value: Values, likewise.
        scaling: Factor on the products of queries and keys.
        visible: Mask of the keys that a query attends to; None for all.
        causal: True if query i attends to keys 0 to i only.
    """
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    if visible is None:
        return flash(query, key, value, is_causal=causal, scale=scaling)
    bias = torch.zeros(visible.shape, dtype=query.dtype).masked_fill_(~visible, -torch.inf)
    outputs, lse = flash(query, key, value, attn_mask=bias, scale=scaling)
    # The kernel returns 0 for queries without any visible key.
    return outputs, lse.masked_fill(~visible.any(-1), -torch.inf)


def eager_partial_attention(
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    value: Float[Tensor, "batch kv_head key d_head"],
    scaling: float,
    visible: Bool[Tensor, "#batch 1 query key"] | None = None,
) -> PartialAttention:
    """Attention over the given keys with all scores at once, in float32, on any device."""
    group = query.float().unflatten(1, (key.shape[1], -1))
    scores = scaling * einsum(group, key.float(), "b kv g query d, b kv key d -> b kv g query key")
    if visible is not None:
        scores = scores.masked_fill(~visible[:, None], -torch.inf)
    lse = scores.logsumexp(-1)
    pattern = (scores - lse.nan_to_num(neginf=0)[..., None]).exp()
    outputs = einsum(pattern, value.float(), "b kv g query key, b kv key d -> b kv g query d").to(query)
    return outputs.flatten(1, 2), lse.flatten(1, 2)


def has_varlen(tensor: Tensor) -> bool:
    """True if torch's variable-length attention takes tensors like this one."""
    return tensor.is_cuda and tensor.dtype in (torch.bfloat16, torch.float16) and tensor.shape[-1] <= 256


def varlen_attention(
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    value: Float[Tensor, "batch kv_head key d_head"],
    scaling: float,
    window: tuple[int, int] = (-1, 0),
) -> PartialAttention:
    """Attention of the last queries of a sequence to the keys around their own, by torch's kernel for GPUs.

    Args:
        query: Queries of the last positions that `key` holds.
        key: Keys, all rows of one length.
        value: Values at the same positions.
        scaling: Factor on the products of queries and keys.
        window: Number of keys before and after its own that a query attends to; -1 for all.
    """
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    batch, n_queries, n_keys = len(query), query.shape[2], key.shape[2]
    offsets = torch.arange(batch + 1, device=query.device, dtype=torch.int32)
    queries, keys, values = (rearrange(part, "batch head n d -> (batch n) head d") for part in (query, key, value))
    # The documentation of varlen_attn gives the log-sum-exp as [query head]; its code gives [head query].
    outputs, lse = varlen_attn(
        queries,
        keys,
        values,
        offsets * n_queries,
        offsets * n_keys,
        n_queries,
        n_keys,
        return_aux=AuxRequest(lse=True),
        scale=scaling,
        window_size=window,
        enable_gqa=True,
    )
    return (
        rearrange(outputs, "(batch n) head d_head -> batch head n d_head", batch=batch),
        rearrange(lse, "head (batch n) -> batch head n", batch=batch),
    )


def window_attention(
    query: Float[Tensor, "1 head query d_head"],
    key: Float[Tensor, "1 kv_head key d_head"],
    value: Float[Tensor, "1 kv_head key d_head"],
    scaling: float,
    window: int,
) -> PartialAttention:
    """Attention of each query to itself and the `window - 1` keys before it, for one of the `chunks` of one row.

    Blocks are the batch of one call: their slices of the keys overlap and are read in place, under one small mask.

    Args:
        query: Queries of whole blocks, or fewer than a block.
        key: Keys of the `window - 1` positions before the first query, and of the queries.
        value: Values at the same positions.
        scaling: Factor on the products of queries and keys.
        window: Number of positions that a query attends to, its own included; at least 1.
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
    outputs, lse = partial_attention(blocks, keys, values, scaling, visible)
    joined = "block head row ... -> 1 head (block row) ..."
    return rearrange(outputs, joined), rearrange(lse, joined)


def chunks(begin: int, end: int) -> Iterator[slice]:
    """Yield the queries from `begin` to `end` as slices of whole blocks, and one of the remaining queries."""
    whole_end = end - (end - begin) % BLOCK
    yield from (slice(first, min(first + CHUNK, whole_end)) for first in range(begin, whole_end, CHUNK))
    if whole_end < end:
        yield slice(whole_end, end)
