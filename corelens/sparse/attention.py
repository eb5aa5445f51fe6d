"""The attention function of planned layers: every head by its rule, from the cache or from plain keys."""

from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.masking_utils import causal_mask_function, sdpa_mask

from corelens.hooks.attention import AttentionCall
from corelens.sparse.cache_layer import HeadSparseLayer, KeyValues, PendingKeyValues, on_device, select_heads
from corelens.sparse.kernels import block_attention, decode_attention, full_attention, streaming_attention
from corelens.sparse.kernels.reference import visible_full
from corelens.sparse.plan import LayerPlan, Streaming, TopBlocks


def head_sparse_mask(**kwargs: Any) -> Int[Tensor, "batch 1 1 1"] | Bool[Tensor, "batch 1 query key"] | None:
    """What layers are told: where each left-padded sample starts, or a whole mask if more than padding is masked.

    In four dimensions in either case: Hugging Face leaves masks alone that have four.

    Raises:
        ValueError: If padding stands on the right or between tokens.
    """
    if kwargs["mask_function"] is not causal_mask_function or kwargs.get("use_vmap"):
        return sdpa_mask(**kwargs)
    real: Tensor | None = kwargs.get("attention_mask")
    if real is None:
        return None
    # Graphs cannot look at numbers, and the prompt has been looked at.
    if not torch.compiler.is_compiling():
        if real.all():
            return None
        if (real[:, :-1] & ~real[:, 1:]).any():
            raise ValueError(
                "head-sparse attention needs padding on the left, and this attention mask has some elsewhere."
            )
    return rearrange(real.logical_not().sum(-1), "batch -> batch 1 1 1")


class CausalAttention:
    """Attention to all that came before, padding left out: by kernels that skip what is not seen."""

    def __init__(self, start: Int[Tensor, "batch 1 1 1"] | None, scaling: float) -> None:
        self.start = None if start is None else start.flatten()
        self.scaling = scaling

    def full(self, query: Tensor, keys: KeyValues) -> Tensor:
        return full_attention(query, *keys, scaling=self.scaling, start=self.start)

    def streaming(
        self, query: Tensor, keys: KeyValues, kept: KeyValues, kept_position: Tensor, window: int, first: int
    ) -> Tensor:
        return streaming_attention(
            query, *keys, *kept, kept_position, window=window, scaling=self.scaling, first=first, start=self.start
        )

    def blocks(self, query: Tensor, keys: KeyValues, top_p: float) -> Tensor:
        if query.shape[2] < keys.n:
            # The estimate is made for whole prompts.
            return self.full(query, keys)
        return block_attention(query, *keys, top_p, scaling=self.scaling, start=self.start)


class MaskedAttention:
    """Attention under a mask of the model's own, such as pictures that are seen whole; exact, and not faster."""

    def __init__(self, mask: Bool[Tensor, "batch 1 query key"], scaling: float) -> None:
        self.mask, self.scaling = mask, scaling
        newest = mask[:, 0, -1]
        # A sample of which nothing is seen has not begun.
        self.start = torch.where(newest.any(-1), newest.int().argmax(-1), newest.shape[-1])

    def full(self, query: Tensor, keys: KeyValues) -> Tensor:
        return self._attention(query, keys, self.mask)

    def streaming(
        self, query: Tensor, keys: KeyValues, kept: KeyValues, kept_position: Tensor, window: int, first: int
    ) -> Tensor:
        batch, _, n, _ = query.shape
        position = torch.arange(first, first + keys.n, device=query.device)
        reach = position[-n:, None] - window
        near = (position > reach).expand(batch, -1, -1)
        far = (kept_position >= 0)[:, None] & (kept_position[:, None] <= reach)
        place = torch.cat([kept_position.clamp(min=0), position.expand(batch, -1)], 1)
        seen = self.mask.gather(-1, place[:, None, None].expand(-1, 1, n, -1))
        return self._attention(query, kept.concat(keys), seen & torch.cat([far, near], -1)[:, None])

    def blocks(self, query: Tensor, keys: KeyValues, top_p: float) -> Tensor:
        return self.full(query, keys)

    def _attention(self, query: Tensor, keys: KeyValues, seen: Bool[Tensor, "batch 1 query key"]) -> Tensor:
        grouped = query.shape[1] != keys.key.shape[1]
        return scaled_dot_product_attention(query, *keys, seen, scale=self.scaling, enable_gqa=grouped)


BEYOND = ("softcap", "s_aux", "sinks", "position_bias", "indices", "block_indices", "cu_seq_lens_q")
"""What some models ask of attention and planned layers do not compute."""


class Tokens:
    """What the planned layers of a model are told of the tokens of the present pass."""

    text: Bool[Tensor, "batch position"] | None = None
    """Which are text of the prompt; None if no plan asks, and for generated tokens."""

    n_prompt: int | None = None
    """How many positions the prompt has; None outside of generate."""


class PlannedAttention(NamedTuple):
    """What an attention module knows of its plan."""

    plan: LayerPlan
    tokens: Tokens


def head_sparse_attention(
    module: nn.Module,
    query: Tensor,
    key: Any,
    value: Any,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What Hugging Face calls. Modules without a plan get what they would without corelens."""
    planned: PlannedAttention | None = module.__dict__.get("_corelens_planned")
    mask = None if attention_mask is None else attention_mask.to(query.device)
    if planned is None:
        if mask is not None and not mask.is_floating_point() and mask.dtype != torch.bool:
            position = torch.arange(key.shape[2], device=key.device)
            mask = visible_full(position[-query.shape[2] :], position, start=mask[:, 0, 0, 0])
        return AttentionCall(module, query, key, value, mask, scaling, others).head_outputs(), None
    kind = type(module).__name__
    if beyond := next((name for name in BEYOND if others.get(name) is not None), None):
        raise ValueError(f"{kind} asks for `{beyond}`, which head-sparse attention does not compute.")
    if not isinstance(key, PendingKeyValues) and key.shape[-1] != value.shape[-1]:
        raise ValueError(f"{kind} has keys and values of different widths, which head-sparse attention does not read.")
    if mask is not None and mask.is_floating_point():
        raise ValueError(f"{kind} brings a mask of numbers, and head-sparse attention takes yes or no.")
    if torch.is_grad_enabled() and query.requires_grad:
        raise RuntimeError("head-sparse attention is for inference: run the model under torch.no_grad().")
    if not isinstance(key, PendingKeyValues):
        key, _ = HeadSparseLayer(planned.plan).update(key, value)
    factor = float(query.shape[-1] ** -0.5) if scaling is None else scaling
    return attend_by_plan(query, key, mask, planned.tokens.text, factor).transpose(1, 2).contiguous(), None


def attend_by_plan(
    query: Float[Tensor, "batch head query d"],
    held: PendingKeyValues,
    mask: Int[Tensor, "batch 1 1 1"] | Bool[Tensor, "batch 1 query key"] | None,
    text: Bool[Tensor, "batch new"] | None,
    scaling: float,
) -> Float[Tensor, "batch head query d_v"]:
    """Head outputs of one layer, whose cache takes up the new keys and values.

    Args:
        query: Queries of the last of the new positions.
        held: New keys and values.
        mask: What `head_sparse_mask` made.
        text: Which of the new positions are text that streaming heads keep.
        scaling: Factor on the products.
    """
    layer, plan, n = held.layer, held.layer.plan, query.shape[2]
    if text is not None and text.shape[1] != held.keys.n:
        raise ValueError("a plan that keeps text cannot continue from a cache that was filled without it.")
    rows = (
        MaskedAttention(mask, scaling)
        if mask is not None and mask.dtype == torch.bool
        else CausalAttention(mask, scaling)
    )
    whole, window = layer.append(held.keys), held.keys.of(plan.window)
    layer.retain(window, rows.start, text)
    z = query.new_zeros(*query.shape[:3], held.keys.value.shape[-1])
    if n == 1 and isinstance(rows, CausalAttention):
        layer.commit(window)
        # Each store is read once, whatever rules its heads follow.
        if heads := plan.readers(plan.whole):
            visible = layer.visible_of_whole(whole.n, rows.start)
            found = decode_attention(select_heads(query, heads), *whole, visible, scaling=scaling)
            z[:, on_device(heads, z.device)] = found
        if heads := plan.readers(plan.window):
            visible = layer.visible_of_window(rows.start)
            found = decode_attention(select_heads(query, heads), *layer.window, visible, scaling=scaling)
            z[:, on_device(heads, z.device)] = found
        if plan.off:
            z[:, on_device(plan.off, z.device)] = 0
        return z
    for part in plan.of_whole:
        queries, keys = select_heads(query, part.heads), whole.of(part.kv_heads)
        match part.rule:
            case Streaming(_, size, _):
                first = max(0, whole.n - n - size + 1)
                found = rows.streaming(queries, keys.from_position(first), keys.at(layer.kept), layer.kept, size, first)
            case TopBlocks(top_p):
                found = rows.blocks(queries, keys, top_p)
            case _:
                found = rows.full(queries, keys)
        z[:, on_device(part.heads, z.device)] = found
    for part in plan.of_window:
        assert isinstance(part.rule, Streaming)
        recent, first = layer.recent()
        keys, kept = recent.concat(window).of(part.kv_heads), layer.kept_keys().of(part.kv_heads)
        found = rows.streaming(select_heads(query, part.heads), keys, kept, layer.kept, part.rule.window, first)
        z[:, on_device(part.heads, z.device)] = found
    layer.commit(window)
    return z
