"""Attention function of planned layers: head outputs by rule, from the cache or from plain keys."""

from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.masking_utils import causal_mask_function, sdpa_mask

from corelens.hooks.attention import AttentionCall
from corelens.sparse.cache_layer import HeadSparseLayer, KeyValues, PendingKeyValues, on_device, select_heads
from corelens.sparse.kernels import (
    block_attention,
    block_streaming_attention,
    decode_attention,
    full_attention,
    near_or_first_blocks,
    streaming_attention,
    visible_full,
)
from corelens.sparse.plan import LayerPlan
from corelens.sparse.rules import Streaming, StreamingBlocks, TopBlocks

UNSUPPORTED_ARGUMENTS = ("softcap", "s_aux", "sinks", "position_bias", "indices", "block_indices", "cu_seq_lens_q")
"""Arguments of attention functions that planned layers do not compute."""


class PassTokens:
    """Facts about the tokens of the current pass that the planned layers of a model need."""

    text: Bool[Tensor, "batch position"] | None = None
    """True for text of the prompt; None if no plan keeps text, and for generated tokens."""

    n_prompt: int | None = None
    """Length of the prompt; None outside of generate."""


class PlannedAttention(NamedTuple):
    """Plan of an attention module, stored on the module."""

    plan: LayerPlan
    tokens: PassTokens


def head_sparse_attention(
    module: nn.Module,
    query: Tensor,
    key: Any,
    value: Any,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention function registered with transformers. Modules without a plan compute the same as without corelens."""
    planned: PlannedAttention | None = module.__dict__.get("_corelens_planned")
    mask = None if attention_mask is None else attention_mask.to(query.device)
    if planned is None:
        if mask is not None and not mask.is_floating_point() and mask.dtype != torch.bool:
            position = torch.arange(key.shape[2], device=key.device)
            mask = visible_full(position[-query.shape[2] :], position, start=mask[:, 0, 0, 0])
        return AttentionCall(module, query, key, value, mask, scaling, kwargs).head_outputs(), None
    kind = type(module).__name__
    if unsupported := next((name for name in UNSUPPORTED_ARGUMENTS if kwargs.get(name) is not None), None):
        raise ValueError(f"{kind} passes `{unsupported}`, which head-sparse attention does not compute.")
    if not isinstance(key, PendingKeyValues) and key.shape[-1] != value.shape[-1]:
        raise ValueError(f"{kind} has keys and values of different widths, which head-sparse attention does not read.")
    if mask is not None and mask.is_floating_point():
        raise ValueError(f"{kind} passes an additive mask, and head-sparse attention takes boolean masks.")
    if torch.is_grad_enabled() and query.requires_grad:
        raise RuntimeError("head-sparse attention is for inference: run the model under torch.no_grad().")
    if not isinstance(key, PendingKeyValues):
        key, _ = HeadSparseLayer(planned.plan).update(key, value)
    factor = float(query.shape[-1] ** -0.5) if scaling is None else scaling
    return attend_by_plan(query, key, mask, planned.tokens.text, factor).transpose(1, 2).contiguous(), None


def head_sparse_mask(**kwargs: Any) -> Int[Tensor, "batch 1 1 1"] | Bool[Tensor, "batch 1 query key"] | None:
    """Mask function registered with transformers.

    Returns:
        Where each left-padded sample starts, or a boolean mask if more than causality and padding is masked. In four
        dimensions in either case: Hugging Face leaves masks alone that have four.

    Raises:
        ValueError: If padding stands on the right or between tokens.
    """
    if kwargs["mask_function"] is not causal_mask_function or kwargs.get("use_vmap"):
        return sdpa_mask(**kwargs)
    real: Tensor | None = kwargs.get("attention_mask")
    if real is None:
        return None
    # Compiled graphs cannot branch on values, and the prompt has been checked before.
    if not torch.compiler.is_compiling():
        if real.all():
            return None
        if (real[:, :-1] & ~real[:, 1:]).any():
            raise ValueError(
                "head-sparse attention needs padding on the left, and this attention mask has some elsewhere."
            )
    return rearrange(real.logical_not().sum(-1), "batch -> batch 1 1 1")


def attend_by_plan(
    query: Float[Tensor, "batch head query d"],
    pending: PendingKeyValues,
    mask: Int[Tensor, "batch 1 1 1"] | Bool[Tensor, "batch 1 query key"] | None,
    text: Bool[Tensor, "batch new"] | None,
    scaling: float,
) -> Float[Tensor, "batch head query d_v"]:
    """Compute head outputs of one layer, and store the new keys and values in its cache.

    Args:
        query: Queries of the last of the new positions.
        pending: New keys and values.
        mask: Result of `head_sparse_mask`.
        text: True for the new positions that are text that streaming heads keep.
        scaling: Factor on the products of queries and keys.
    """
    layer, plan, n = pending.layer, pending.layer.plan, query.shape[2]
    if text is not None and text.shape[1] != pending.new.n:
        raise ValueError("a plan that keeps text cannot continue from a cache that was filled without it.")
    attention = (
        MaskedAttention(mask, scaling)
        if mask is not None and mask.dtype == torch.bool
        else CausalAttention(mask, scaling)
    )
    full_cache, new = layer.append(pending.new), pending.new.select_heads(plan.window_kv_heads)
    layer.retain(new, attention.start, text)
    z = query.new_zeros(*query.shape[:3], pending.new.value.shape[-1])
    if n == 1 and isinstance(attention, CausalAttention):
        layer.commit(new)
        # Each cache is read once, whatever rules its heads follow.
        if heads := plan.query_heads(plan.full_kv_heads):
            visible = layer.visible_in_full_cache(full_cache.n, attention.start)
            outputs = decode_attention(select_heads(query, heads), *full_cache, visible, scaling=scaling)
            z[:, on_device(heads, z.device)] = outputs
        if heads := plan.query_heads(plan.window_kv_heads):
            visible = layer.visible_in_window_cache(attention.start)
            outputs = decode_attention(select_heads(query, heads), *layer.window_cache, visible, scaling=scaling)
            z[:, on_device(heads, z.device)] = outputs
        if plan.off_heads:
            z[:, on_device(plan.off_heads, z.device)] = 0
        return z
    for group in plan.full_groups:
        queries, keys = select_heads(query, group.heads), full_cache.select_heads(group.kv_indices)
        match group.rule:
            case Streaming(_, window, _):
                first, positions = max(0, full_cache.n - n - window + 1), layer.retained_positions
                outputs = attention.streaming(
                    queries, keys.from_position(first), keys.at(positions), positions, window, first
                )
            case TopBlocks(top_p):
                outputs = attention.blocks(queries, keys, top_p)
            # A single token is a generated one.
            case StreamingBlocks() if n > 1:
                outputs = attention.streaming_blocks(queries, keys, group.rule)
            case _:
                outputs = attention.full(queries, keys)
        z[:, on_device(group.heads, z.device)] = outputs
    for group in plan.window_groups:
        assert isinstance(group.rule, Streaming)
        queries, (recent, first) = select_heads(query, group.heads), layer.recent()
        keys = recent.concat(new).select_heads(group.kv_indices)
        retained = layer.retained().select_heads(group.kv_indices)
        outputs = attention.streaming(queries, keys, retained, layer.retained_positions, group.rule.window, first)
        z[:, on_device(group.heads, z.device)] = outputs
    layer.commit(new)
    return z


class CausalAttention:
    """Causal attention without padding, by kernels that skip masked keys."""

    def __init__(self, start: Int[Tensor, "batch 1 1 1"] | None, scaling: float) -> None:
        self.start = None if start is None else start.flatten()
        self.scaling = scaling

    def full(self, query: Tensor, keys: KeyValues) -> Tensor:
        return full_attention(query, *keys, scaling=self.scaling, start=self.start)

    def streaming(
        self, query: Tensor, keys: KeyValues, retained: KeyValues, retained_position: Tensor, window: int, first: int
    ) -> Tensor:
        return streaming_attention(
            query,
            *keys,
            *retained,
            retained_position,
            window=window,
            scaling=self.scaling,
            first=first,
            start=self.start,
        )

    def blocks(self, query: Tensor, keys: KeyValues, top_p: float) -> Tensor:
        if query.shape[2] < keys.n:
            # The estimate is defined for whole prompts.
            return self.full(query, keys)
        return block_attention(query, *keys, top_p, scaling=self.scaling, start=self.start)

    def streaming_blocks(self, query: Tensor, keys: KeyValues, rule: StreamingBlocks) -> Tensor:
        return block_streaming_attention(query, *keys, **asdict(rule), scaling=self.scaling, start=self.start)


class MaskedAttention:
    """Attention under a mask of the model's own, such as bidirectional pictures; exact, and not faster."""

    def __init__(self, mask: Bool[Tensor, "batch 1 query key"], scaling: float) -> None:
        self.mask, self.scaling = mask, scaling
        newest = mask[:, 0, -1]
        # A sample whose newest query attends to nothing is all padding so far.
        self.start = torch.where(newest.any(-1), newest.int().argmax(-1), newest.shape[-1])

    def full(self, query: Tensor, keys: KeyValues) -> Tensor:
        return self._attention(query, keys, self.mask)

    def streaming(
        self, query: Tensor, keys: KeyValues, retained: KeyValues, retained_position: Tensor, window: int, first: int
    ) -> Tensor:
        batch, _, n, _ = query.shape
        position = torch.arange(first, first + keys.n, device=query.device)
        last_outside = position[-n:, None] - window
        near = (position > last_outside).expand(batch, -1, -1)
        far = (retained_position >= 0)[:, None] & (retained_position[:, None] <= last_outside)
        column = torch.cat([retained_position.clamp(min=0), position.expand(batch, -1)], 1)
        allowed = self.mask.gather(-1, column[:, None, None].expand(-1, 1, n, -1))
        return self._attention(query, retained.concat(keys), allowed & torch.cat([far, near], -1)[:, None])

    def blocks(self, query: Tensor, keys: KeyValues, top_p: float) -> Tensor:
        return self.full(query, keys)

    def streaming_blocks(self, query: Tensor, keys: KeyValues, rule: StreamingBlocks) -> Tensor:
        position = torch.arange(keys.n, device=query.device)
        blocks = near_or_first_blocks(position[-query.shape[2] :], position, **asdict(rule), start=self.start)
        return self._attention(query, keys, self.mask & blocks)

    def _attention(self, query: Tensor, keys: KeyValues, visible: Bool[Tensor, "batch 1 query key"]) -> Tensor:
        grouped = query.shape[1] != keys.key.shape[1]
        return scaled_dot_product_attention(query, *keys, visible, scale=self.scaling, enable_gqa=grouped)
