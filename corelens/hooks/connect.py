"""Attach hook points to a Hugging Face model for one pass, and detach them at its end.

The Hugging Face model is untouched between passes. `connected` is the one place where that changes:

    hooks on the residual stream   PyTorch hooks on layers and their parts   (points.HookedBlock.connected)
    hooks on hook_o_in             PyTorch hooks on W_O                      (points.HookedAttention.connected)
    hooks on norms and neurons     PyTorch hooks on these                    (sublayers)
    hooks on q k v scores z        another attention function                (taps.route_attention)
    positions of the pass          a PyTorch hook on the stack of layers     (track_positions)
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformer_lens.hook_points import HookPoint
from transformers import PreTrainedConfig, PreTrainedModel, StaticCache

from corelens.errors import docs_link
from corelens.hf.architecture import decoder_configs
from corelens.hf.layers import AttentionModule, DecoderLayer
from corelens.hf.prefix_cache import PrefixCache
from corelens.hf.versions import given_cache
from corelens.hf.wrapped_modules import WrappedModules
from corelens.hooks.experts import HookedExperts
from corelens.hooks.points import HookedAttention, HookedBlock, HookedVision, hook_input
from corelens.hooks.positions import Intervention, PassState, batch_shape
from corelens.hooks.rows import RowHook
from corelens.hooks.sublayers import HookedMLP, HookedNorm
from corelens.hooks.taps import NAME, PACKED, HookedAttentionCall, route_attention
from corelens.hooks.threads import in_this_thread
from corelens.tokens import TokenMap


def begin_pass(
    hf_model: PreTrainedModel,
    layers: Sequence[DecoderLayer],
    tensors: Mapping[str, Any],
    tokens: TokenMap | None,
    prefix: PrefixCache | None = None,
) -> PassState:
    """State of a pass, or of a generation, before its first layer runs.

    Raises:
        ValueError: If the inputs hold no sequence, or do not begin as the prefix does.
    """
    n_samples, n_prompt = batch_shape(tensors)
    if hf_model.config.is_encoder_decoder and "decoder_input_ids" not in tensors:
        n_prompt = 1
    past = given_cache(tensors)
    n_cached = 0 if past is None else int(past.get_seq_length())
    if prefix is not None:
        prefix.check(hf_model, tensors)
        n_cached = prefix.length
    cross_attention = frozenset(
        layer.layer for layer in layers if "attn" in layer.attentions and layer.attentions["attn"].is_cross_attention
    )
    prefix_hooks = () if prefix is None else prefix.hooks
    return PassState(n_samples, n_prompt, tokens, n_cached, n_prompt - n_cached, cross_attention, prefix_hooks)


@contextmanager
def connected(
    wrapped: WrappedModules,
    blocks: Sequence[HookedBlock],
    vision: HookedVision,
    ends: tuple[HookPoint, HookedNorm | None],
    state: PassState,
) -> Iterator[None]:
    """Connect every hook point that has hooks to the Hugging Face model until the block ends.

    Args:
        wrapped: The model whose next passes are hooked.
        blocks: Hook points of its decoder layers.
        vision: Hook points of its vision tower.
        ends: Hook points of what enters the first layer, and of the norm behind the last.
        state: Positions of the pass; updated while it runs.

    Raises:
        RuntimeError: If the model has changed, is compiled or computes its layers again for gradients, drops
            activations at random, or its heads follow a plan.
        ValueError: If an intervention cannot act in this pass.
    """
    embed, ln_final = ends
    outside = [embed] if ln_final is None else [embed, ln_final]
    modules = [module for part in (*blocks, vision, *outside) for module in part.modules()]
    points = [module for module in modules if isinstance(module, HookPoint) and module.has_hooks()]
    if not points:
        yield
        return
    wrapped.check_hookable()
    _check_hooks(points, state)
    with ExitStack() as connections:
        for point in points:
            point.ctx["state"] = state
            connections.callback(clear_context, point)
        connections.callback(track_positions(blocks[0].hf_layer.stack, state).remove)
        if embed.has_hooks():
            # Before the layer's own, so that hook_resid_pre sees its edits.
            connections.callback(hook_input(embed, blocks[0].hf_layer.block).remove)
        attentions = [module for module in modules if isinstance(module, HookedAttention)]
        for module in modules:
            if isinstance(module, HookedBlock | HookedAttention | HookedMLP | HookedExperts | HookedNorm):
                connections.enter_context(module.connected())
        in_vision = set(vision.modules())
        taps = {
            attention.hf_attention: attention.tap(state, ignore_queries=attention in in_vision)
            for attention in attentions
            if attention.has_hooks
        }
        if taps:
            for hooked, tap in taps.items():
                connections.callback(_check_called(hooked.module, tap).remove)
            names = attention_function_names(wrapped.hf_model, taps)
            connections.enter_context(route_attention({hooked.module: tap for hooked, tap in taps.items()}, names))
        yield


def attention_function_names(
    hf_model: PreTrainedModel, hooked: Iterable[AttentionModule]
) -> list[tuple[PreTrainedConfig, str]]:
    """Name of the attention function in each configuration that leads to a hooked module."""
    by_module = {attention.module: attention for attention in hooked}
    names: dict[int, tuple[PreTrainedConfig, str]] = {}
    if any(module in by_module for module in hf_model.get_decoder().modules()):
        names |= {id(config): (config, NAME) for config in decoder_configs(hf_model)}
    for attention in by_module.values():
        names[id(attention.config)] = (attention.config, PACKED if attention.packed else NAME)
    return list(names.values())


def track_positions(stack: nn.Module, state: PassState) -> RemovableHandle:
    """Keep `state` up to date with the positions that each pass through the layers computes."""
    signature = inspect.signature(stack.forward)

    def update(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        arguments = signature.bind_partial(*args, **kwargs).arguments
        arguments |= arguments.get("kwargs", {})
        names = ("inputs_embeds", "input_ids", "decoder_input_ids", "hidden_states")
        sequence = next(arguments[name] for name in names if arguments.get(name) is not None)
        cache = given_cache(arguments)
        state.n_computed = sequence.shape[1]
        state.n_cached = 0 if cache is None else int(cache.get_seq_length())
        state.preallocated = isinstance(getattr(cache, "self_attention_cache", cache), StaticCache)
        if "logits_to_keep" not in kwargs:
            return None
        # Told how many logits are needed, layers that share another's keys (Gemma 4) skip all other positions, and
        # hooks on these layers would miss them.
        return args, kwargs | {"logits_to_keep": 0}

    return stack.register_forward_pre_hook(in_this_thread(update), with_kwargs=True)


def _check_called(module: nn.Module, tap: HookedAttentionCall) -> RemovableHandle:
    """Raise if an attention module runs without its hook points, since its forward was replaced."""

    def check(*_: Any) -> None:
        if not tap.called:
            raise RuntimeError(
                f"{type(module).__name__} ran without its hooks on {tap.hook_z.name} and others there: its forward "
                f"does not call transformers' attention functions, or no longer. {docs_link('changed')}"
            )

    return module.register_forward_hook(in_this_thread(check))


def hook_functions(points: Iterable[HookPoint]) -> Iterator[Callable[..., Any]]:
    """Forward hook functions at some points, as their users added them."""
    for point in points:
        for handle in point.fwd_hooks:
            function: Any = handle.user_hook
            yield function.function if isinstance(function, RowHook) else function


def clear_context(point: HookPoint) -> None:
    """Remove what a pass left at a hook point."""
    for name in ("state", "rows", "queries", "hidden", "uniform", "copy"):
        point.ctx.pop(name, None)


def _check_hooks(points: Sequence[HookPoint], state: PassState) -> None:
    """Raise before the pass if an intervention cannot act in it, or queries belong to another prompt."""
    for function in hook_functions(points):
        if isinstance(function, Intervention):
            function.check(replace(state, n_cached=0) if function in state.prefix_hooks else state)
    for point in points:
        if point.bwd_hooks and not torch.is_grad_enabled():
            raise ValueError(f"a backward hook on {point.name} never acts under torch.no_grad(): there is no gradient.")
        for handle in (*point.fwd_hooks, *point.bwd_hooks):
            hook: Any = handle.user_hook
            limited = isinstance(hook, RowHook) and not isinstance(hook.function, Intervention)
            if limited and hook.where.prompt is not None:
                state.mask(hook.where.prompt, "queries")
