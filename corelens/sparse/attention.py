"""The attention function of planned layers: every head by its rule, from the cache or from plain keys."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from corelens.attention import AttentionCall
from corelens.sparse.kernels import decode_attention
from corelens.sparse.kernels.reference import visible_full
from corelens.sparse.keys import on_device, some
from corelens.sparse.layer import HeadSparseLayer, Held
from corelens.sparse.masks import Causal, Masked
from corelens.sparse.plan import LayerPlan, Streaming, TopBlocks

BEYOND = ("softcap", "s_aux", "sinks", "position_bias", "indices", "block_indices", "cu_seq_lens_q")
"""What some models ask of attention and planned layers do not compute."""


class Tokens:
    """What the planned layers of a model are told of the tokens of the present pass."""

    text: Bool[Tensor, "batch position"] | None = None
    """Which are text of the prompt; None if no plan asks, and for generated tokens."""

    n_prompt: int | None = None
    """How many positions the prompt has; None outside of generate."""


class Planned(NamedTuple):
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
    planned: Planned | None = module.__dict__.get("_corelens_planned")
    mask = None if attention_mask is None else attention_mask.to(query.device)
    if planned is None:
        if mask is not None and not mask.is_floating_point() and mask.dtype != torch.bool:
            position = torch.arange(key.shape[2], device=key.device)
            mask = visible_full(position[-query.shape[2] :], position, start=mask[:, 0, 0, 0])
        return AttentionCall(module, query, key, value, mask, scaling, others).heads_outputs(), None
    kind = type(module).__name__
    if beyond := next((name for name in BEYOND if others.get(name) is not None), None):
        raise ValueError(f"{kind} asks for `{beyond}`, which head-sparse attention does not compute.")
    if not isinstance(key, Held) and key.shape[-1] != value.shape[-1]:
        raise ValueError(f"{kind} has keys and values of different widths, which head-sparse attention does not read.")
    if mask is not None and mask.is_floating_point():
        raise ValueError(f"{kind} brings a mask of numbers, and head-sparse attention takes yes or no.")
    if torch.is_grad_enabled() and query.requires_grad:
        raise RuntimeError("head-sparse attention is for inference: run the model under torch.no_grad().")
    if not isinstance(key, Held):
        key, _ = HeadSparseLayer(planned.plan).update(key, value)
    factor = float(query.shape[-1] ** -0.5) if scaling is None else scaling
    return attend(query, key, mask, planned.tokens.text, factor).transpose(1, 2).contiguous(), None


def attend(
    query: Float[Tensor, "batch head query d"],
    held: Held,
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
    rows = Masked(mask, scaling) if mask is not None and mask.dtype == torch.bool else Causal(mask, scaling)
    whole, window = layer.append(held.keys), held.keys.of(plan.window)
    layer.keep(window, rows.start, text)
    z = query.new_zeros(*query.shape[:3], held.keys.value.shape[-1])
    if n == 1 and isinstance(rows, Causal):
        layer.close(window)
        # Each store is read once, whatever rules its heads follow.
        if heads := plan.readers(plan.whole):
            visible = layer.visible_of_whole(whole.n, rows.start)
            found = decode_attention(some(query, heads), *whole, visible, scaling=scaling)
            z[:, on_device(heads, z.device)] = found
        if heads := plan.readers(plan.window):
            visible = layer.visible_of_window(rows.start)
            found = decode_attention(some(query, heads), *layer.window, visible, scaling=scaling)
            z[:, on_device(heads, z.device)] = found
        if plan.off:
            z[:, on_device(plan.off, z.device)] = 0
        return z
    for part in plan.of_whole:
        queries, keys = some(query, part.heads), whole.of(part.kv_heads)
        match part.rule:
            case Streaming(_, size, _):
                first = max(0, whole.n - n - size + 1)
                found = rows.streaming(queries, keys.since(first), keys.at(layer.kept), layer.kept, size, first)
            case TopBlocks(top_p):
                found = rows.blocks(queries, keys, top_p)
            case _:
                found = rows.full(queries, keys)
        z[:, on_device(part.heads, z.device)] = found
    for part in plan.of_window:
        assert isinstance(part.rule, Streaming)
        recent, first = layer.recent()
        keys, kept = recent.then(window).of(part.kv_heads), layer.kept_keys().of(part.kv_heads)
        found = rows.streaming(some(query, part.heads), keys, kept, layer.kept, part.rule.window, first)
        z[:, on_device(part.heads, z.device)] = found
    layer.close(window)
    return z
