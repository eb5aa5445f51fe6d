"""Attention over some of the keys, with the log-sum-exp of its scores, by whatever kernel the device has for it."""

from collections.abc import Iterator

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor

PartialAttention = tuple[Float[Tensor, "batch head query d_head"], Float[Tensor, "batch head query"]]
"""What heads found among some keys, and the log-sum-exp of their scores: -inf where a query saw none of the keys."""


def merge(
    some: PartialAttention, others: PartialAttention, out: Float[Tensor, "batch head query d_head"] | None = None
) -> Tensor:
    """What heads find among the keys of both, which must be different keys. Every query must see some of the first."""
    share = torch.sigmoid(others[1] - some[1])[..., None]
    return torch.lerp(some[0], others[0], share.to(some[0]), out=out)


def has_varlen(tensor: Tensor) -> bool:
    """Whether torch has the kernel for tensors like this one."""
    return tensor.is_cuda and tensor.dtype in (torch.bfloat16, torch.float16) and tensor.shape[-1] <= 256


def varlen_attention(
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    value: Float[Tensor, "batch kv_head key d_head"],
    scaling: float,
    window: tuple[int, int] = (-1, 0),
) -> PartialAttention:
    """Attention of the last queries of a sequence to the keys around their own.

    Args:
        query: Those of the last positions that `key` holds.
        key: All rows of one length.
        value: Likewise.
        scaling: What scores are multiplied by.
        window: How many keys before its own and behind it a query sees; -1 for all.
    """
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    batch, n_queries, n_keys = len(query), query.shape[2], key.shape[2]
    begins = torch.arange(batch + 1, device=query.device, dtype=torch.int32)
    queries, keys, values = (rearrange(part, "batch head n d -> (batch n) head d") for part in (query, key, value))
    # The documentation of varlen_attn gives the log-sum-exp as [query head]; its code gives [head query].
    found, lse = varlen_attn(
        queries,
        keys,
        values,
        begins * n_queries,
        begins * n_keys,
        n_queries,
        n_keys,
        return_aux=AuxRequest(lse=True),
        scale=scaling,
        window_size=window,
        enable_gqa=True,
    )
    return (
        rearrange(found, "(batch n) head d_head -> batch head n d_head", batch=batch),
        rearrange(lse, "head (batch n) -> batch head n", batch=batch),
    )


BLOCK = 32
"""Queries of a block, which reads `window + 31` keys: fewer waste less, more make larger matrix products. The fastest
of 16, 32, 64 and 128 on a CPU, for windows of 256 and 512."""

CHUNK = 1024
"""Queries computed together, so that what is between the steps stays in the cache of the processor."""


def chunks(begin: int, end: int) -> Iterator[slice]:
    """The queries from `begin` to `end` in slices of whole blocks, and one of what is left."""
    whole = end - (end - begin) % BLOCK
    yield from (slice(some, min(some + CHUNK, whole)) for some in range(begin, whole, CHUNK))
    if whole < end:
        yield slice(whole, end)


def window_attention(
    query: Float[Tensor, "1 head query d_head"],
    key: Float[Tensor, "1 kv_head key d_head"],
    value: Float[Tensor, "1 kv_head key d_head"],
    scaling: float,
    window: int,
) -> PartialAttention:
    """Attention of each query to itself and the `window - 1` keys before it, of one of the `pieces` of one row.

    Blocks are the batch of one call: their slices of the keys overlap and are read in place, under one small mask.

    Args:
        query: Whole blocks, or less than one.
        key: The `window - 1` before the first query, and those of the queries.
        value: Likewise.
        scaling: What scores are multiplied by.
        window: At least 1.
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
    found, lse = partial_attention(blocks, keys, values, scaling, visible)
    together = "block head row ... -> 1 head (block row) ..."
    return rearrange(found, together), rearrange(lse, together)


def partial_attention(
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    value: Float[Tensor, "batch kv_head key d_head"],
    scaling: float,
    visible: Bool[Tensor, "#batch 1 query key"] | None = None,
) -> PartialAttention:
    """Attention over the given keys alone: all, or those that are visible."""
    if visible is None and has_varlen(query):
        return varlen_attention(query, key, value, scaling, window=(-1, -1))
    if query.device.type == "cpu":
        return flash_cpu(query, key, value, scaling, visible)
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
    """The kernel that SDPA runs on CPUs, which reads the keys of groups in place; SDPA keeps its second result back.

    Args:
        query: In any layout whose last axis is contiguous.
        key: Likewise.
        value: Likewise.
        scaling: What scores are multiplied by.
        visible: Keys that a query sees; None for all.
        causal: Query i sees keys 0 to i.
    """
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    if visible is None:
        return flash(query, key, value, is_causal=causal, scale=scaling)
    added = torch.zeros(visible.shape, dtype=query.dtype).masked_fill_(~visible, -torch.inf)
    found, lse = flash(query, key, value, attn_mask=added, scale=scaling)
    # It says 0 for queries that see no key.
    return found, lse.masked_fill(~visible.any(-1), -torch.inf)


def eager_partial_attention(
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    value: Float[Tensor, "batch kv_head key d_head"],
    scaling: float,
    visible: Bool[Tensor, "#batch 1 query key"] | None = None,
) -> PartialAttention:
    """The same with all scores at once, in float32, on any device."""
    group = query.float().unflatten(1, (key.shape[1], -1))
    scores = scaling * einsum(group, key.float(), "b kv g query d, b kv key d -> b kv g query key")
    if visible is not None:
        scores = scores.masked_fill(~visible[:, None], -torch.inf)
    lse = scores.logsumexp(-1)
    pattern = (scores - lse.nan_to_num(neginf=0)[..., None]).exp()
    found = einsum(pattern, value.float(), "b kv g query key, b kv key d -> b kv g query d").to(query)
    return found.flatten(1, 2), lse.flatten(1, 2)
