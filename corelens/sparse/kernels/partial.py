"""Attention over some of the keys, with the log-sum-exp of its scores, by whatever kernel the device has for it."""

import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor

from corelens.sparse.kernels.merging import Found
from corelens.sparse.kernels.varlen import has_varlen, varlen_attention


def attend(
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    value: Float[Tensor, "batch kv_head key d_head"],
    scaling: float,
    visible: Bool[Tensor, "#batch 1 query key"] | None = None,
) -> Found:
    """Attention over the given keys alone: all, or those that are visible."""
    if visible is None and has_varlen(query):
        return varlen_attention(query, key, value, scaling, window=(-1, -1))
    if query.device.type == "cpu":
        return flash_cpu(query, key, value, scaling, visible)
    return by_hand(query, key, value, scaling, visible)


def flash_cpu(
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    value: Float[Tensor, "batch kv_head key d_head"],
    scaling: float,
    visible: Bool[Tensor, "#batch 1 query key"] | None = None,
    *,
    causal: bool = False,
) -> Found:
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


def by_hand(
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv_head key d_head"],
    value: Float[Tensor, "batch kv_head key d_head"],
    scaling: float,
    visible: Bool[Tensor, "#batch 1 query key"] | None = None,
) -> Found:
    """The same with all scores at once, in float32, on any device."""
    group = query.float().unflatten(1, (key.shape[1], -1))
    scores = scaling * einsum(group, key.float(), "b kv g query d, b kv key d -> b kv g query key")
    if visible is not None:
        scores = scores.masked_fill(~visible[:, None], -torch.inf)
    lse = scores.logsumexp(-1)
    pattern = (scores - lse.nan_to_num(neginf=0)[..., None]).exp()
    found = einsum(pattern, value.float(), "b kv g query key, b kv key d -> b kv g query d").to(query)
    return found.flatten(1, 2), lse.flatten(1, 2)
