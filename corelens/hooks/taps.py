"""The attention function registered with transformers, and the hook points that it calls.

While a pass is hooked, attention modules call `_hooked_attention` instead of sdpa:

    query key value  ->  hook_q hook_k hook_v  ->  fused attention  ->  hook_z  ->  W_O
                               |                                          ^
                               +-> scores -> hook_attn_scores             | only if a hook changed the rows
                                   -> pattern -> hook_pattern  -> weighted values

The lower path runs only for the rows of requested queries, in float32.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from threading import get_ident
from typing import Any, NamedTuple, Protocol, runtime_checkable

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
"""Name of the function and of its mask in transformers."""

PACKED = "corelens_flash"
"""The same function for vision towers that pack pictures or windows into one sequence: they hand the whole sequence
and its boundaries only to functions whose name holds "flash", and call all others once for every part."""

SPARSE = "corelens_sparse"
"""Name of the function of models under a `corelens.sparse` plan."""


class Route(NamedTuple):
    """Hooked pass that has switched the attention function of a configuration."""

    thread: int
    implementation: str | None
    """The function that other threads expect."""


_ROUTES: dict[int, Route] = {}
"""Hooked passes that are running, by the id of each configuration."""


@runtime_checkable
class Tap(Protocol):
    """The function that a routed attention module calls in place of attention."""

    def attend(self, call: AttentionCall) -> Float[Tensor, "batch query head d_head"]:
        """Head outputs of a call."""
        ...


@dataclass
class HookedAttentionCall:
    """Hook points of one attention module during one pass."""

    hook_q: HookPoint
    hook_k: HookPoint
    hook_v: HookPoint
    hook_attn_scores: HookPoint
    hook_pattern: HookPoint
    hook_z: HookPoint
    state: PassState
    ignore_queries: bool = False
    """Give hooks all rows, whatever queries they request; for vision towers."""

    is_cross_attention: bool = False
    """True if keys are not positions of the sequence."""

    why_not_editable: str = ""
    """Reason why `z` must not be edited; empty if it may be."""

    called: bool = False
    """True once the attention module has called it."""

    def attend(self, call: AttentionCall) -> Float[Tensor, "batch query head d_head"]:
        """Head outputs, with the edits of all hooks."""
        self.called = True
        call = replace(
            call,
            query=_call_hook_by_position(self.hook_q, call.query),
            key=_call_hook_by_position(self.hook_k, call.key),
            value=_call_hook_by_position(self.hook_v, call.value),
        )
        if (hidden := self.hook_k.ctx.pop("hidden", None)) is not None:
            call = call.hide_keys(hidden)
        call = self._with_uniform_heads(call, hides_keys=hidden is not None)
        z = call.head_outputs()
        if self.hook_attn_scores.has_hooks() or self.hook_pattern.has_hooks():
            z = self._call_row_hooks(call, z)
        z, edited = call_hook_detecting_edits(self.hook_z, z)
        if edited and self.why_not_editable:
            raise ValueError(f"{self.hook_z.name} was edited, and {self.why_not_editable}")
        # Some layers view it in another shape.
        return z.contiguous()

    def _with_uniform_heads(self, call: AttentionCall, hides_keys: bool) -> AttentionCall:
        """The call with uniform attention where hooks on `q` marked it, over the visible keys or over all."""
        uniform: dict[str, Tensor] = self.hook_q.ctx.pop("uniform", {})
        if "visible" in uniform:
            call = call.with_zero_logits(uniform["visible"])
        if "all" in uniform:
            if hides_keys:
                raise ValueError(
                    f"{self.hook_q.name}: method='uniform_all_keys' attends to all keys, and mask_keys hides some of "
                    f"them. Ablate by 'uniform'."
                )
            if call.boundaries is not None:
                raise ValueError(f"{self.hook_q.name}: heads cannot attend to all keys of packed sequences.")
            exist = self.state.n_cached + self.state.n_computed if self.state.preallocated else None
            call = replace(call, even=uniform["all"], n_keys=None if self.is_cross_attention else exist)
        return call

    def _call_row_hooks(
        self, call: AttentionCall, z: Float[Tensor, "batch query head d_head"]
    ) -> Float[Tensor, "batch query head d_head"]:
        """Call the hooks on scores and pattern; return head outputs, recomputed only if a hook changed the rows."""
        rows = self._rows(call)
        if rows is not None and not rows.real.any():
            return z
        scores = call.scores(rows)
        if rows is not None and not rows.real.all():
            scores = scores.masked_fill(~rows.real[:, None, :, None], torch.nan)
        # Columns are positions of the sequence, also where a sliding cache has dropped the first keys.
        dropped = 0 if self.is_cross_attention else int(self.state.positions(scores.shape[-1])[0])
        scores = pad(scores, (dropped, 0), value=torch.finfo(torch.float32).min)
        scores, scores_edited = call_hook_detecting_edits(self.hook_attn_scores, scores)
        pattern = pad(call.pattern(scores[..., dropped:], rows), (dropped, 0))
        pattern, pattern_edited = call_hook_detecting_edits(self.hook_pattern, pattern)
        if not (scores_edited or pattern_edited):
            return z
        pattern = pattern[..., dropped:]
        row_outputs = weighted_values(pattern, call.value).to(z)
        return row_outputs if rows is None else rows.put(z, row_outputs)

    def _rows(self, call: AttentionCall) -> QueryRows | None:
        """Rows that any hook requests, among the queries of this call; None for all."""
        if self.ignore_queries:
            return None
        points = [point for point in (self.hook_attn_scores, self.hook_pattern) if point.has_hooks()]
        queries = self.state.positions(call.query.shape[2])

        def requested(handle: LensHandle) -> Bool[Tensor, "batch query"]:
            where = getattr(handle.user_hook, "where", None) or PositionSelector()
            return repeat_per_row(where.select(self.state, queries), call.query)

        handles = [handle for point in points for handle in (*point.fwd_hooks, *point.bwd_hooks)]
        by_any = torch.stack([requested(handle) for handle in handles]).any(0)
        rows = QueryRows.of(by_any)
        for point in points:
            point.ctx |= {"rows": rows, "queries": queries}
            if not all(torch.equal(requested(handle), by_any) for handle in point.bwd_hooks):
                raise ValueError(
                    f"a backward hook on {point.name} needs the same rows as all other hooks there, and another hook "
                    f"requests different ones: give all the same `queries`."
                )
        return None if by_any.all() else rows


@contextmanager
def route_attention(taps: Mapping[nn.Module, Tap], names: list[tuple[PreTrainedConfig, str]]) -> Iterator[None]:
    """Route the attention of some modules through their hook points until the block ends.

    Args:
        taps: What each attention module calls, such as its hook points.
        names: Configurations of these modules, and the function's name there: `NAME` or `PACKED`.

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
    routes = {id(config): Route(get_ident(), config._attn_implementation_internal) for config, _ in names}
    try:
        for module, tap in taps.items():
            module.__dict__["_corelens_tap"] = tap
        _ROUTES.update(routes)
        with attention_implementation(names):
            yield
    finally:
        for config in routes:
            _ROUTES.pop(config, None)
        for module in taps:
            module.__dict__.pop("_corelens_tap", None)


@contextmanager
def attention_implementation(names: Sequence[tuple[PreTrainedConfig, str | None]]) -> Iterator[None]:
    """Switch the attention function of some configurations until the block ends.

    Args:
        names: Configurations, and the name of the function that their modules shall call.
    """
    # The private name: the public setter would also change sub-configurations, the vision tower's among them.
    previous = [(config, config._attn_implementation_internal) for config, _ in names]
    try:
        for config, name in names:
            config._attn_implementation_internal = name
        yield
    finally:
        for config, implementation in reversed(previous):
            config._attn_implementation_internal = implementation


def _hooked_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention function registered with transformers.

    The hook points are found on the calling module, so that wrapped models share no state.
    """
    if hasattr(module, "build_attention_mask_from_topk") and attention_mask is not None:
        # Such modules mask keys by booleans only for functions named "sdpa"; rows without a key differ in every bit.
        attention_mask = attention_mask if attention_mask.dtype == torch.bool else attention_mask == 0
    call = AttentionCall(module, query, key, value, attention_mask, scaling, kwargs)
    tap: Tap | None = module.__dict__.get("_corelens_tap")
    # Any: pyright sees no attributes of a module.
    hf_module: Any = module
    route = _ROUTES.get(id(hf_module.config))
    if route is not None and route.thread != get_ident():
        if route.implementation != "sdpa":
            raise RuntimeError(
                f"another thread hooks the attention of this model, which runs sdpa meanwhile and not "
                f"{route.implementation!r}: call it through corelens, which waits. {docs_link('raw-call')}"
            )
        tap = None
    if tap is None and attention_mask is None and route is not None and route.implementation == "eager":
        # No attention to tokens (Inkling 2): of a layer to its own stream after earlier ones, by the model's own code.
        eager = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
        return eager(module, query, key, value, None, scaling, **kwargs)[0], None
    return call.head_outputs() if tap is None else tap.attend(call), None


def call_hook(point: HookPoint, tensor: Tensor) -> Tensor:
    """Call the hooks of a point; a ValueError if they return anything but a tensor of the same shape."""
    if not point.has_hooks():
        return tensor
    result = point(tensor)
    if not isinstance(result, Tensor) or result.shape != tensor.shape:
        returned = f"shape {tuple(result.shape)}" if isinstance(result, Tensor) else f"a {type(result).__name__}"
        raise ValueError(f"a hook on {point.name} returned {returned} in place of {tuple(tensor.shape)}.")
    return result


def call_hook_by_token(point: HookPoint, tensor: Tensor) -> Tensor:
    """Call the hooks of a point on [batch position ...], also where a layer runs all tokens as one row (OPT)."""
    if tensor.ndim > 2:
        return call_hook(point, tensor)
    return call_hook(point, tensor.unflatten(0, (-1, point.ctx["state"].n_computed))).flatten(0, 1)


def call_hook_on_copy(point: HookPoint, tensor: Tensor) -> Tensor:
    """Call the hooks of a point on a copy, where the tensor outlives the pass: it is in a cache, or the caller's."""
    return call_hook(point, tensor.clone() if point.fwd_hooks else tensor)


def _call_hook_by_position(hook: HookPoint, heads_first: Tensor) -> Tensor:
    """Call a hook on [batch head position d_head] as [batch position head d_head], TransformerLens's order."""
    if not hook.has_hooks():
        return heads_first
    return call_hook_on_copy(hook, heads_first.transpose(1, 2)).transpose(1, 2)


def call_hook_detecting_edits(hook: HookPoint, tensor: Tensor) -> tuple[Tensor, bool]:
    """Call a hook; return its tensor, and True if that was replaced, changed in place, or needs a gradient."""
    if not hook.has_hooks():
        return tensor, False
    result, edited = call_detecting_edits(partial(call_hook, hook), tensor)
    return result, edited or bool(hook.bwd_hooks)
