"""The one attention function, which every head of every layer passes through while somebody looks.

It computes what the model's fused attention computes, lets hooks see and edit queries, keys, values and head outputs,
and recomputes exact attention rows in float32 for those who look at scores or patterns. Nothing S x S is made unless
the pattern is asked for without choosing queries.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "corelens"
"""What Hugging Face knows the function and its mask as."""

UNSUPPORTED = ("softcap", "s_aux", "sinks", "position_bias", "indices", "block_indices")
"""Arguments that change attention in ways this function does not compute yet."""


def chosen_rows(queries: Bool[Tensor, "batch position"]) -> Bool[Tensor, "batch query"]:
    """Which rows of a pattern limited by `queries` are real.

    A pattern limited to chosen queries has as many rows as the sample with most of them; row r of a sample is its r-th
    chosen query. Samples with fewer have NaN in their last rows, where this mask is False.

    Example:
        >>> chosen_rows(torch.tensor([[True, False, True], [False, False, True]]))
        tensor([[ True,  True],
                [ True, False]])
    """
    counts = queries.sum(-1, keepdim=True)
    return torch.arange(int(counts.max()), device=queries.device) < counts


@dataclass
class Rows:
    """The query positions, within one call, whose attention rows are wanted."""

    position: Int[Tensor, "batch query"]
    """Zero where `real` is False."""

    real: Bool[Tensor, "batch query"]

    @classmethod
    def of(cls, queries: Bool[Tensor, "batch position"]) -> "Rows":
        real = chosen_rows(queries)
        # Chosen positions come first in a stable sort, in their own order.
        order = queries.logical_not().to(torch.uint8).argsort(dim=-1, stable=True)[:, : real.shape[1]]
        return cls(torch.where(real, order, 0), real)

    def take(self, tensor: Shaped[Tensor, "batch head query last"]) -> Shaped[Tensor, "batch head row last"]:
        """The chosen rows; padding rows repeat the first."""
        batch = torch.arange(len(tensor), device=tensor.device)[:, None]
        return tensor.transpose(1, 2)[batch, self.position].transpose(1, 2)


@dataclass
class AttentionTap:
    """The hook points of one layer's attention, and the queries whose rows they show."""

    hook_q: HookPoint
    hook_k: HookPoint
    hook_v: HookPoint
    hook_attn_scores: HookPoint
    hook_pattern: HookPoint
    hook_z: HookPoint
    queries: Bool[Tensor, "batch position"] | None
    """By position in the whole sequence; None shows all rows."""

    def attend(
        self,
        module: nn.Module,
        query: Float[Tensor, "batch head query d_qk"],
        key: Float[Tensor, "batch kv_head key d_qk"],
        value: Float[Tensor, "batch kv_head key d_head"],
        mask: Tensor | None,
        scaling: float | None,
        **others: Any,
    ) -> Float[Tensor, "batch query head d_head"]:
        """Head outputs, after every hook has seen and edited what it asked for."""
        query = _by_position(self.hook_q, query)
        key = _by_position(self.hook_k, key)
        value = _by_position(self.hook_v, value)
        z, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **others)
        if self.hook_attn_scores.has_hooks() or self.hook_pattern.has_hooks():
            z = self._look(module, query, key, value, mask, scaling, others.get("is_causal"), z)
        return _call(self.hook_z, z)

    def _look(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float | None,
        is_causal: bool | None,
        z: Float[Tensor, "batch query head d_head"],
    ) -> Float[Tensor, "batch query head d_head"]:
        """Shows scores and pattern to their hooks; head outputs change only if the hooks changed them."""
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        rows = None
        if self.queries is not None:
            here = _queries_of_call(self.queries, query, key, mask)
            if not here.any():
                return z
            rows = Rows.of(here)
        visible = _visible(query.shape[2], key, mask, causal, rows)
        seen = attention_scores(query if rows is None else rows.take(query), key, scaling, visible)
        if rows is not None and not rows.real.all():
            seen = seen.masked_fill(~rows.real[:, None, :, None], torch.nan)
        scores, edited = _watch(self.hook_attn_scores, seen)
        pattern, pattern_edited = _watch(self.hook_pattern, scores.softmax(-1))
        if not (edited or pattern_edited):
            return z
        from_rows = _mix(pattern, value).to(z)
        if rows is None:
            return from_rows
        batch = torch.arange(len(z), device=z.device)[:, None].expand_as(rows.position)
        real = rows.real
        return z.index_put((batch[real], rows.position[real]), from_rows[real])


def attention_scores(
    query: Float[Tensor, "batch head row d_qk"],
    key: Float[Tensor, "batch kv_head key d_qk"],
    scaling: float | None,
    visible: Shaped[Tensor, "#batch #head #row #key"],
) -> Float[Tensor, "batch head row key"]:
    """Attention logits in float32.

    Args:
        query: Queries as they meet the keys: normed and rotated.
        key: Keys, the cached ones included; groups of query heads share one.
        scaling: Factor on the products; None means one over the root of their width.
        visible: True where a query may look, or, as floats, what is added to the logits.

    Returns:
        The lowest finite float32 where a query may not look, so that rows that see nothing are even, as in eager
        attention.
    """
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    grouped = _grouped(query, key.shape[1])
    scores = einsum(
        grouped, key.float(), "batch kv_head group row d_qk, batch kv_head key d_qk -> batch kv_head group row key"
    )
    scores = rearrange(scores, "batch kv_head group row key -> batch (kv_head group) row key") * factor
    if visible.dtype == torch.bool:
        return scores.masked_fill_(~visible, torch.finfo(torch.float32).min)
    return scores + visible.float()


@contextmanager
def tapped(taps: dict[nn.Module, AttentionTap], configs: Iterable[PreTrainedConfig]) -> Iterator[None]:
    """Leads the attention of the given modules through their taps until the block ends."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)
    # The private name: the public setter would also change sub-configurations, the vision tower's among them.
    before = [(config, config._attn_implementation_internal) for config in configs]
    try:
        for config, _ in before:
            config._attn_implementation_internal = NAME
        for module, tap in taps.items():
            module.__dict__["_corelens_tap"] = tap
        yield
    finally:
        for module in taps:
            module.__dict__.pop("_corelens_tap", None)
        for config, implementation in before:
            config._attn_implementation_internal = implementation


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What Hugging Face calls. The module that calls leads to the state, so that models do not see one another."""
    tap: AttentionTap | None = module.__dict__.get("_corelens_tap")
    if tap is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **others)
    if unsupported := [name for name in UNSUPPORTED if others.get(name) is not None]:
        raise NotImplementedError(
            f"{type(module).__name__} passes `{unsupported[0]}` to its attention, which corelens does not compute yet: "
            f"its heads cannot be hooked."
        )
    return tap.attend(module, query, key, value, attention_mask, scaling, **others), None


def _mask(**about: Any) -> Tensor | None:
    """Hugging Face's own mask, with a note of where its first query stands in the sequence."""
    mask: Any = sdpa_mask(**about)
    if mask is not None:
        mask.corelens_first_query = int(about["q_offset"])
    return mask


def _queries_of_call(queries: Tensor, query: Tensor, key: Tensor, mask: Tensor | None) -> Bool[Tensor, "batch query"]:
    """The part of `queries` that this call computes: everything in a plain pass, nothing beyond it when decoding."""
    n, first = query.shape[2], 0
    if mask is not None:
        first = getattr(mask, "corelens_first_query", key.shape[2] - n)
    elif n == 1:
        first = key.shape[2] - 1
    here = torch.zeros(len(queries), n, dtype=torch.bool, device=query.device)
    part = queries[:, first : first + n]
    here[:, : part.shape[1]] = part
    # Beams repeat every sample.
    return here.repeat_interleave(len(query) // len(queries), 0)


def _visible(n_queries: int, key: Tensor, mask: Tensor | None, causal: bool, rows: Rows | None) -> Tensor:
    """The mask of the wanted rows, made explicit where Hugging Face leaves it to the fused kernel."""
    if mask is not None:
        return mask if rows is None else rows.take(mask.expand(len(rows.position), -1, -1, -1))
    columns = torch.arange(key.shape[2], device=key.device)
    if not causal or n_queries == 1:
        return torch.ones_like(columns, dtype=torch.bool)[None, None, None]
    position = torch.arange(n_queries, device=key.device)[None] if rows is None else rows.position
    return (columns <= position[..., None])[:, None]


def _by_position(hook: HookPoint, heads_first: Tensor) -> Tensor:
    """Shows [batch head position d_head] to a hook as [batch position head d_head], the order that hooks know."""
    if not hook.has_hooks():
        return heads_first
    return _call(hook, heads_first.transpose(1, 2)).transpose(1, 2)


def _call(hook: HookPoint, tensor: Tensor) -> Tensor:
    if not hook.has_hooks():
        return tensor
    seen = hook(tensor)
    if seen.shape != tensor.shape:
        raise ValueError(f"a hook on {hook.name} returned shape {tuple(seen.shape)} in place of {tuple(tensor.shape)}.")
    return seen


def _watch(hook: HookPoint, tensor: Tensor) -> tuple[Tensor, bool]:
    """What the hook returns, and whether it differs: replaced, changed in place, or in need of a gradient."""
    if not hook.has_hooks():
        return tensor, False
    if tensor.is_inference():
        # Inference tensors do not count changes made in place.
        with torch.inference_mode(False):
            tensor = tensor.clone()
    version = tensor._version
    seen = _call(hook, tensor)
    return seen, seen is not tensor or seen._version != version or bool(hook.bwd_hooks)


def _mix(pattern: Float[Tensor, "batch head row key"], value: Tensor) -> Float[Tensor, "batch row head d_head"]:
    """Values mixed by attention, in float32."""
    mixed = einsum(
        _grouped(pattern, value.shape[1]),
        value.float(),
        "batch kv_head group row key, batch kv_head key d_head -> batch row kv_head group d_head",
    )
    return rearrange(mixed, "batch row kv_head group d_head -> batch row (kv_head group) d_head")


def _grouped(tensor: Float[Tensor, "batch head row last"], n_kv_heads: int) -> Float[Tensor, "batch kv group row last"]:
    """Query heads by the key-value head that they share, in float32; keys and values are never repeated."""
    return rearrange(tensor.float(), "batch (kv group) row last -> batch kv group row last", kv=n_kv_heads)
