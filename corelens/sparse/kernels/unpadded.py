"""Full and streaming attention of rows without padding, which is where the work is done."""

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from corelens.sparse.kernels.blocks import pieces, window_attention
from corelens.sparse.kernels.merging import merge
from corelens.sparse.kernels.partial import attend, flash_cpu
from corelens.sparse.kernels.reference import visible_full
from corelens.sparse.kernels.varlen import has_varlen, varlen_attention


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
    for some in (*pieces(early, cut), *([slice(cut, n)] if flash and cut < n else pieces(cut, n))):
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
        kept = attend(query[:, :, some], kept_key, kept_value, scaling, visible)
        merge(found, kept, out=out[:, :, some])
