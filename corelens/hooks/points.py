"""Hook points of a decoder layer, of its attention and of the vision tower, and checks of their names.

    HookedBlock            blocks.{layer}.hook_{resid_pre,attn_out,resid_mid,mlp_out,resid_post}
      HookedAttention      blocks.{layer}.attn.hook_{q,k,v,attn_scores,pattern,z,o_in}
      HookedAttention      blocks.{layer}.cross_attn.hook_*    where a layer also attends to an encoder
      HookedMLP            blocks.{layer}.mlp.hook_{pre,pre_linear,post}    see `sublayers`
      HookedExperts        blocks.{layer}.mlp.hook_expert_weights, or `experts` beside a dense `mlp`
      HookedNorm           blocks.{layer}.{ln1,ln2}.hook_scale
    HookedVision           vision.blocks.{layer}.attn.hook_*

Hook points are TransformerLens's; `corelens.hooks.connect` attaches those that have hooks to the Hugging Face model for
the duration of a pass, and `corelens.hf.architecture` says where in the model they belong.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from typing import Any

from einops import rearrange
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformer_lens.hook_points import HookPoint

from corelens.errors import docs_link
from corelens.heads import Head
from corelens.hf.layers import AttentionModule, DecoderLayer
from corelens.hf.wrapped_modules import WrappedModules
from corelens.hooks.experts import HookedExperts
from corelens.hooks.positions import PassState
from corelens.hooks.refused import REFUSED_POINTS
from corelens.hooks.sublayers import HookedMLP, HookedNorm
from corelens.hooks.taps import HookedAttentionCall, call_hook, call_hook_by_token, call_hook_on_copy
from corelens.hooks.threads import in_this_thread
from corelens.hooks.weights import AttentionWeights

NamesFilter = str | Sequence[str] | Callable[[str], bool] | None
"""One hook name, several, a filter of names, or None for all."""


class HookedAttention(AttentionWeights):
    """Hook points of one attention module.

    - `hook_q`: [batch query head d_qk], normed and rotated, as they meet the keys
    - `hook_k`: [batch key kv_head d_qk] and `hook_v`: [batch key kv_head d_head], cached positions included; an edit
      acts on this pass and does not change the cache
    - `hook_attn_scores`, `hook_pattern`: [batch head query key] in float32, before and after the softmax; rows of
      models with attention sinks sum to less than one, since a sink takes the rest
    - `hook_z`: [batch query head d_head], the output of each head
    - `hook_o_in`: [batch query head d_head], the input of W_O; only in layers where a gate or a norm stands between it
      and `hook_z`

    The key axis of self-attention is the sequence, also in decoding where a sliding cache has dropped the first keys
    (`hook_k` and `hook_v` hold only what the cache holds); of cross-attention, the encoder's positions or, where
    pictures are its input, their tiles and patches. In a vision tower it is the patches of one picture or tile, batch
    being these; towers that pack pictures or windows into one sequence have a batch of one and all patches, and
    attention across parts is zero.
    """

    def __init__(self, hf_attention: AttentionModule, wrapped: WrappedModules) -> None:
        super().__init__()
        self.hf_attention, self.wrapped = hf_attention, wrapped
        self.hook_q, self.hook_k, self.hook_v = HookPoint(), HookPoint(), HookPoint()
        self.hook_attn_scores, self.hook_pattern, self.hook_z = HookPoint(), HookPoint(), HookPoint()
        if hf_attention.gated and hf_attention.w_o is not None:
            self.hook_o_in = HookPoint()

    @property
    def has_hooks(self) -> bool:
        """True if any of its hook points has a hook."""
        return any(point.has_hooks() for point in self.children() if isinstance(point, HookPoint))

    def tap(self, state: PassState, ignore_queries: bool) -> HookedAttentionCall:
        """These hook points in the form that the attention function takes."""
        points: Any = {name: point for name, point in self.named_children() if name != "hook_o_in"}
        return HookedAttentionCall(
            **points,
            state=state,
            ignore_queries=ignore_queries,
            is_cross_attention=self.hf_attention.is_cross_attention,
            why_not_editable=self._why_not_editable,
        )

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Connect `hook_o_in`, if it has hooks, to the input of W_O until the block ends."""
        point, w_o, n_heads = getattr(self, "hook_o_in", None), self.hf_attention.w_o, self.hf_attention.n_heads
        if point is None or not point.has_hooks():
            yield
            return

        def call_hooks(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            by_head = rearrange(args[0], "... (head d_head) -> ... head d_head", head=n_heads)
            return (rearrange(call_hook(point, by_head), "... head d_head -> ... (head d_head)"),)

        assert w_o is not None  # the hook point exists only where it was found
        handle = w_o.register_forward_pre_hook(in_this_thread(call_hooks))
        try:
            yield
        finally:
            handle.remove()

    @property
    def _why_not_editable(self) -> str:
        if not self.hf_attention.mixing_norm:
            return ""
        return (
            f"{type(self.hf_attention.module).__name__}.{self.hf_attention.mixing_norm} normalises all heads together "
            f"afterwards, so that changing one head there changes what the others write. Edit hook_o_in, behind that "
            f"norm."
        )


class HookedBlock(nn.Module):
    """Hook points of one decoder layer: `attn` and `cross_attn` where it has them, and the residual stream's.

    Those are [batch position d_model]: `hook_resid_pre`, `hook_attn_out`, `hook_resid_mid`, `hook_mlp_out`,
    `hook_resid_post`; a layer has those that its form allows. `mlp` is there if it is dense, or a mixture of experts
    with a known router; experts beside a dense one are `experts`. `ln1` and `ln2` are the norms of what attention and
    MLP read.
    """

    hook_out_is_single_residual_stream = True
    """For TransformerLens's logit lens, which compares the residual stream with the logits."""

    def __init__(self, hf_layer: DecoderLayer, wrapped: WrappedModules) -> None:
        super().__init__()
        self.hf_layer = hf_layer
        for name, attention in hf_layer.attentions.items():
            self.add_module(name, HookedAttention(attention, wrapped))
        for name, norm in hf_layer.norms.items():
            self.add_module(name, HookedNorm(norm, wrapped))
        if hf_layer.mlp is not None:
            self.mlp = HookedMLP(hf_layer.mlp, wrapped)
        if hf_layer.experts is not None:
            # Beside an MLP, in Gemma 4's layers.
            self.add_module("mlp" if hf_layer.mlp is None else "experts", HookedExperts(hf_layer.experts))
        for name in hf_layer.points:
            self.add_module(f"hook_{name}", HookPoint())

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Connect the residual stream's hook points that have hooks to the Hugging Face layer until the block ends."""
        connect = {"input": hook_input, "input in place": _hook_input_in_place, "output": _hook_output}
        with ExitStack() as connections:
            for name, location in self.hf_layer.points.items():
                point: Any = getattr(self, f"hook_{name}")
                if point.has_hooks():
                    connections.callback(connect[location.side](point, location.module).remove)
            yield


class HookedVision(nn.Module):
    """Hook points of the vision tower, `blocks.{layer}.attn`, by layer."""

    def __init__(self, attentions: dict[int, AttentionModule], wrapped: WrappedModules) -> None:
        super().__init__()
        layers = {
            str(layer): nn.ModuleDict({"attn": HookedAttention(module, wrapped)})
            for layer, module in attentions.items()
        }
        self.blocks = nn.ModuleDict(layers)


def hook_name(layer: int, point: str) -> str:
    """Name of a hook point of the decoder; TransformerLens calls this `get_act_name`.

    Examples:
        >>> hook_name(3, "attn.pattern"), hook_name(3, "resid_post")
        ('blocks.3.attn.hook_pattern', 'blocks.3.hook_resid_post')
    """
    path, _, point = point.rpartition(".")
    return ".".join(filter(None, (f"blocks.{layer}", path, f"hook_{point}")))


def layer_of(name: str) -> int:
    """Number of the layer in the name of one of its hook points.

    Examples:
        >>> layer_of("blocks.12.attn.hook_z")
        12
    """
    return int(name.split(".")[1])


def names_selector(
    names_filter: NamesFilter, names: Collection[str], check: Callable[[str], None]
) -> Callable[[str], bool]:
    """Filter of hook names as a function.

    Args:
        names_filter: One hook name, several, a function, or None for all of the decoder.
        names: Names of all hook points that exist.
        check: Raises if a name does not exist.
    """
    if callable(names_filter):
        return set(matching_names(names_filter, names)).__contains__
    if names_filter is None:
        return {name for name in names if not name.startswith("vision.")}.__contains__
    selected = [names_filter] if isinstance(names_filter, str) else list(names_filter)
    for name in selected:
        check(name)
    return selected.__contains__


def matching_names(names_filter: Callable[[str], bool], names: Collection[str]) -> list[str]:
    """Names of hook points that a filter selects; a ValueError if it selects none."""
    if selected := [name for name in names if names_filter(name)]:
        return selected
    forms = dict.fromkeys(re.sub(r"\.\d+\.", ".LAYER.", name) for name in names)
    raise ValueError(
        f"the filter of names selects none of the {len(names)} hook points, which are called {', '.join(forms)}. "
        f"{docs_link('hook-point')}"
    )


def check_heads(heads: Iterable[Head], layers: Sequence[DecoderLayer]) -> None:
    """Raise a ValueError that names the first head that the layers do not have."""
    for head in heads:
        layer = layers[head.layer] if 0 <= head.layer < len(layers) else None
        if layer is None:
            n_heads = max(layer.attentions["attn"].n_heads for layer in layers if "attn" in layer.attentions)
            reason = f"the model has {len(layers)} layers of {n_heads} heads, counted from zero"
        elif "attn" in layer.missing:
            reason = layer.missing["attn"]
        elif 0 <= head.head < layer.attentions["attn"].n_heads:
            continue
        else:
            reason = f"layer {head.layer} has {layer.attentions['attn'].n_heads} heads, counted from zero"
        raise ValueError(f"{head} does not exist: {reason}. {docs_link('head')}")


def check_hook_name(name: str, names: Collection[str], layers: Sequence[DecoderLayer], no_vision: str) -> None:
    """Raise a ValueError if there is no such hook point.

    Args:
        name: Name of a hook point.
        names: Names of all hook points that exist.
        layers: The decoder's layers.
        no_vision: Reason why the vision tower has no hook points; empty if it has some.
    """
    if name in names:
        return
    if name.startswith("vision.") and no_vision:
        raise ValueError(f"there is no hook point {name!r}: {no_vision} {docs_link('hook-point')}")
    match name.split("."):
        case ["blocks", number, point, *_] if number.isdecimal() and int(number) < len(layers):
            layer = layers[int(number)]
            reason = layer.missing.get(point.removeprefix("hook_"))
            if name.endswith(".hook_o_in") and point in layer.attentions:
                reason = "nothing stands between the head outputs of this layer, hook_z, and their W_O"
        case _:
            reason = None
    if reason := reason or REFUSED_POINTS.get(name.rpartition(".")[2]):
        raise ValueError(f"there is no hook point {name!r}: {reason}. {docs_link('hook-point')}")
    nearest = ", ".join(get_close_matches(name, names, n=3, cutoff=0))
    raise ValueError(f"there is no hook point {name!r}; the nearest are {nearest}. {docs_link('hook-point')}")


def hook_input(point: HookPoint, module: nn.Module) -> RemovableHandle:
    """Call a hook point on what a decoder layer reads from the residual stream."""

    def call_hooks(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # On a copy: the first layer's input is the caller's `inputs_embeds`, another's is what the layer before wrote.
        if args:
            return (call_hook_on_copy(point, args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": call_hook_on_copy(point, kwargs["hidden_states"])}

    return module.register_forward_pre_hook(in_this_thread(call_hooks), with_kwargs=True)


def _hook_input_in_place(point: HookPoint, module: nn.Module) -> RemovableHandle:
    def call_hooks(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stream = args[0] if args else kwargs["hidden_states"]
        # A clone, since caches keep the tensor that hooks get; in place, since the layer has already put the same
        # tensor aside as the residual stream that the MLP's output is added to.
        stream.copy_(call_hook(point, stream.clone()))

    return module.register_forward_pre_hook(in_this_thread(call_hooks), with_kwargs=True)


def _hook_output(point: HookPoint, module: nn.Module) -> RemovableHandle:
    def call_hooks(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            return (call_hook_by_token(point, output[0]), *output[1:])
        return call_hook_by_token(point, output)

    return module.register_forward_hook(in_this_thread(call_hooks))
