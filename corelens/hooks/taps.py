"""The hook points of one attention layer, and the attention function that leads to them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import pad
from transformer_lens.hook_points import HookPoint, LensHandle
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.masking_utils import sdpa_mask

from corelens.errors import docs_link
from corelens.hooks.attention import AttentionCall, weighted_values
from corelens.hooks.positions import PassState, PositionSelector, repeat_per_row
from corelens.hooks.rows import QueryRows, call_detecting_edits

NAME = "corelens"
"""What Hugging Face knows the function and its mask as."""


PACKED = "corelens_flash"
"""The same function for vision towers that pack pictures or windows into one sequence: they hand the whole sequence
and its boundaries only to functions whose name holds "flash", and call all others once for every part."""


SPARSE = "corelens_sparse"
"""The function that heads go through while they follow a plan; see `corelens.sparse`."""


@dataclass
class HookedAttentionCall:
    """The hook points of one layer's attention, and the queries whose rows they show."""

    hook_q: HookPoint
    hook_k: HookPoint
    hook_v: HookPoint
    hook_attn_scores: HookPoint
    hook_pattern: HookPoint
    hook_z: HookPoint
    progress: PassState
    ignore_queries: bool = False
    """Whether hooks see all rows, whatever they ask for."""

    is_cross_attention: bool = False
    """Whether keys are something else than the sequence."""

    why_not_editable: str = ""
    """Why `z` may be seen but not edited; empty if it may."""

    def attend(self, call: AttentionCall) -> Float[Tensor, "batch query head d_head"]:
        """Head outputs, after every hook has seen and edited what it asked for."""
        call = replace(
            call,
            query=_by_position(self.hook_q, call.query),
            key=_by_position(self.hook_k, call.key),
            value=_by_position(self.hook_v, call.value),
        )
        if (hidden := self.hook_k.ctx.pop("hidden", None)) is not None:
            call = call.hide_keys(hidden)
        z = call.head_outputs()
        if self.hook_attn_scores.has_hooks() or self.hook_pattern.has_hooks():
            z = self._call_row_hooks(call, z)
        z, edited = _call_hook_detecting_edits(self.hook_z, z)
        if edited and self.why_not_editable:
            raise ValueError(f"{self.hook_z.name} was edited, and {self.why_not_editable}")
        # Some layers view it in another shape.
        return z.contiguous()

    def _call_row_hooks(
        self, call: AttentionCall, z: Float[Tensor, "batch query head d_head"]
    ) -> Float[Tensor, "batch query head d_head"]:
        """Shows scores and pattern to their hooks; head outputs change only if the hooks changed them."""
        rows = self._rows(call)
        if rows is not None and not rows.real.any():
            return z
        seen = call.scores(rows)
        if rows is not None and not rows.real.all():
            seen = seen.masked_fill(~rows.real[:, None, :, None], torch.nan)
        # Columns are positions of the sequence, also where a sliding cache has dropped the first keys.
        dropped = 0 if self.is_cross_attention else int(self.progress.positions(seen.shape[-1])[0])
        seen = pad(seen, (dropped, 0), value=torch.finfo(torch.float32).min)
        scores, edited = _call_hook_detecting_edits(self.hook_attn_scores, seen)
        seen = pad(call.pattern(scores[..., dropped:], rows), (dropped, 0))
        pattern, pattern_edited = _call_hook_detecting_edits(self.hook_pattern, seen)
        if not (edited or pattern_edited):
            return z
        pattern = pattern[..., dropped:]
        from_rows = weighted_values(pattern, call.value).to(z)
        return from_rows if rows is None else rows.put(z, from_rows)

    def _rows(self, call: AttentionCall) -> QueryRows | None:
        """The rows that any hook asks for, among those that this call computes; None for all."""
        if self.ignore_queries:
            return None
        points = [point for point in (self.hook_attn_scores, self.hook_pattern) if point.has_hooks()]
        queries = self.progress.positions(call.query.shape[2])

        def asked(handle: LensHandle) -> Bool[Tensor, "batch query"]:
            where = getattr(handle.user_hook, "where", None) or PositionSelector()
            return repeat_per_row(where.select(self.progress, queries), call.query)

        here = torch.stack([asked(handle) for point in points for handle in (*point.fwd_hooks, *point.bwd_hooks)])
        rows = QueryRows.of(here.any(0))
        for point in points:
            point.ctx |= {"rows": rows, "queries": queries}
            if not all(torch.equal(asked(handle), here.any(0)) for handle in point.bwd_hooks):
                raise ValueError(
                    f"a backward hook on {point.name} needs to see the same rows as all other hooks there, and "
                    f"another asks for others: give all the same `queries`."
                )
        return None if here.any(0).all() else rows


@contextmanager
def route_attention(
    taps: dict[nn.Module, HookedAttentionCall], names: list[tuple[PreTrainedConfig, str]]
) -> Iterator[None]:
    """Leads the attention of the given modules through their taps until the block ends.

    Args:
        taps: By attention module.
        names: The configurations whose modules ask for the function, and what it is called there: `NAME` or `PACKED`.

    Raises:
        RuntimeError: If heads follow a plan.
    """
    for name in (NAME, PACKED):
        AttentionInterface.register(name, _hooked_attention)
        AttentionMaskInterface.register(name, sdpa_mask)
    if any(config._attn_implementation_internal == SPARSE for config, _ in names):
        raise RuntimeError(
            f"heads follow a plan (corelens.sparse.apply), and their attention cannot be hooked then. "
            f"{docs_link('plan-hooks')}"
        )
    try:
        for module, tap in taps.items():
            module.__dict__["_corelens_tap"] = tap
        with attention_implementation(names):
            yield
    finally:
        for module in taps:
            module.__dict__.pop("_corelens_tap", None)


@contextmanager
def attention_implementation(names: Sequence[tuple[PreTrainedConfig, str | None]]) -> Iterator[None]:
    """Has modules ask for another attention function until the block ends.

    Args:
        names: Configurations, and what the function is called there.
    """
    # The private name: the public setter would also change sub-configurations, the vision tower's among them.
    before = [(config, config._attn_implementation_internal) for config, _ in names]
    try:
        for config, name in names:
            config._attn_implementation_internal = name
        yield
    finally:
        for config, implementation in reversed(before):
            config._attn_implementation_internal = implementation


def _hooked_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What Hugging Face calls. The module that calls leads to the state, so that models do not see one another."""
    call = AttentionCall(module, query, key, value, attention_mask, scaling, others)
    tap: HookedAttentionCall | None = module.__dict__.get("_corelens_tap")
    return call.head_outputs() if tap is None else tap.attend(call), None


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


def _call_hook_detecting_edits(hook: HookPoint, tensor: Tensor) -> tuple[Tensor, bool]:
    """What the hook returns, and whether it differs: replaced, changed in place, or in need of a gradient."""
    if not hook.has_hooks():
        return tensor, False
    seen, edited = call_detecting_edits(partial(_call, hook), tensor)
    return seen, edited or bool(hook.bwd_hooks)
