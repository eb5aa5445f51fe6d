"""The hook points of a layer, and how they connect to it for the length of a pass."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from typing import Any

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from corelens.errors import docs_link
from corelens.heads import Head
from corelens.hf.architecture import AttentionModule, DecoderLayer
from corelens.hooks.positions import PassState
from corelens.hooks.taps import HookedAttentionCall


def check_heads(heads: Iterable[Head], sites: Sequence[DecoderLayer]) -> None:
    """Raises a ValueError that names the first head that the layers do not have."""
    for head in heads:
        site = sites[head.layer] if 0 <= head.layer < len(sites) else None
        if site is None:
            n_heads = max(layer.attentions["attn"].n_heads for layer in sites if "attn" in layer.attentions)
            reason = f"the model has {len(sites)} layers of {n_heads} heads, counted from zero"
        elif "attn" in site.missing:
            reason = site.missing["attn"]
        elif 0 <= head.head < site.attentions["attn"].n_heads:
            continue
        else:
            reason = f"layer {head.layer} has {site.attentions['attn'].n_heads} heads, counted from zero"
        raise ValueError(f"{head} does not exist: {reason}. {docs_link('head')}")


def check_hook_name(name: str, existing: Collection[str], sites: Sequence[DecoderLayer], no_vision: str) -> None:
    """Raises a ValueError if there is no such hook point.

    Args:
        name: Of a hook point.
        existing: The names that there are.
        sites: The decoder's layers.
        no_vision: Why the vision tower has no hook points; empty if it has some.
    """
    if name in existing:
        return
    if name.startswith("vision.") and no_vision:
        raise ValueError(f"there is no hook point {name!r}: {no_vision} {docs_link('hook-point')}")
    match name.split("."):
        case ["blocks", layer, point, *_] if layer.isdecimal() and int(layer) < len(sites):
            site = sites[int(layer)]
            reason = site.missing.get(point.removeprefix("hook_"))
            if name.endswith(".hook_o_in") and point in site.attentions:
                reason = "nothing stands between what the heads of this layer find, hook_z, and their W_O"
        case _:
            reason = None
    if reason:
        raise ValueError(f"there is no hook point {name!r}: {reason}. {docs_link('hook-point')}")
    near = get_close_matches(name, existing, n=3, cutoff=0)
    raise ValueError(f"there is no hook point {name!r}; the nearest are {', '.join(near)}. {docs_link('hook-point')}")


class HookedAttention(nn.Module):
    """The hook points of one attention module.

    - `hook_q`: [batch query head d_qk], normed and rotated, as they meet the keys
    - `hook_k`: [batch key kv_head d_qk] and `hook_v`: [batch key kv_head d_head], cached positions included; an edit
      acts on this pass and does not change the cache
    - `hook_attn_scores`, `hook_pattern`: [batch head query key] in float32, before and after the softmax; rows of
      models with attention sinks sum to less than one, since a sink takes the rest
    - `hook_z`: [batch query head d_head], what each head found
    - `hook_o_in`: [batch query head d_head], what enters W_O; only in layers where a gate or a norm stands between it
      and `hook_z`

    The key axis of self-attention is the sequence, also in decoding where a sliding cache has dropped the first keys
    (`hook_k` and `hook_v` show what it holds); of cross-attention, the encoder's positions or, where pictures are
    its input, their tiles and patches. In a vision tower it is the patches of one picture or tile, batch being these;
    towers that pack pictures or windows into one sequence have a batch of one and all patches, and attention across
    parts is zero.
    """

    def __init__(self, site: AttentionModule) -> None:
        super().__init__()
        self._site = site
        self.hook_q, self.hook_k, self.hook_v = HookPoint(), HookPoint(), HookPoint()
        self.hook_attn_scores, self.hook_pattern, self.hook_z = HookPoint(), HookPoint(), HookPoint()
        if site.gated and site.w_o is not None:
            self.hook_o_in = HookPoint()

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:
        """What turns each head's output into what it writes to the residual stream."""
        if self._site.w_o is None:
            raise ValueError(f"where {type(self._site.module).__name__} keeps its W_O is not known.")
        return rearrange(self._site.w_o.weight, "d_model (head d_head) -> head d_head d_model", head=self._site.n_heads)

    @property
    def has_hooks(self) -> bool:
        return any(point.has_hooks() for point in self.children() if isinstance(point, HookPoint))

    def tap(self, progress: PassState, rows_of_all: bool) -> HookedAttentionCall:
        """These hook points as the attention function takes them."""
        points: Any = {name: point for name, point in self.named_children() if name != "hook_o_in"}
        return HookedAttentionCall(
            **points,
            progress=progress,
            ignore_queries=rows_of_all,
            is_cross_attention=self._site.is_cross_attention,
            why_not_editable=self._why_not_editable,
        )

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Connects `hook_o_in`, if it has hooks, until the block ends."""
        site, point = self._site, getattr(self, "hook_o_in", None)
        if point is None or not point.has_hooks():
            yield
            return

        def show(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
            by_head = rearrange(args[0], "... (head d_head) -> ... head d_head", head=site.n_heads)
            return (rearrange(point(by_head), "... head d_head -> ... (head d_head)"),)

        assert site.w_o is not None
        connection = site.w_o.register_forward_pre_hook(show)
        try:
            yield
        finally:
            connection.remove()

    @property
    def _why_not_editable(self) -> str:
        if not self._site.mixing_norm:
            return ""
        return (
            f"{type(self._site.module).__name__}.{self._site.mixing_norm} normalises all heads together afterwards, so "
            f"that changing one head there changes what the others write. Edit hook_o_in, behind that norm."
        )


class HookedBlock(nn.Module):
    """The hook points of one decoder layer: `attn` and `cross_attn` where it has them, and the residual stream's.

    Those are [batch position d_model]: `hook_resid_pre`, `hook_attn_out`, `hook_resid_mid`, `hook_mlp_out`,
    `hook_resid_post`; a layer has those that its form allows.
    """

    hook_out_is_single_residual_stream = True
    """For TransformerLens's logit lens, which compares what it reads with the logits."""

    def __init__(self, site: DecoderLayer) -> None:
        super().__init__()
        self._site = site
        for name, attention in site.attentions.items():
            self.add_module(name, HookedAttention(attention))
        for name in site.points:
            self.add_module(f"hook_{name}", HookPoint())

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Connects the residual hook points that have hooks to the Hugging Face layer until the block ends."""
        connect = {"input": _hook_input, "input in place": _hook_input_in_place, "output": _hook_output}
        with ExitStack() as undo:
            for name, place in self._site.points.items():
                point: Any = getattr(self, f"hook_{name}")
                if point.has_hooks():
                    undo.callback(connect[place.side](point, place.module).remove)
            yield


class HookedVision(nn.Module):
    """The hook points of the vision tower, `blocks.{layer}.attn`, by layer."""

    def __init__(self, sites: dict[int, AttentionModule]) -> None:
        super().__init__()
        layers = {str(layer): nn.ModuleDict({"attn": HookedAttention(site)}) for layer, site in sites.items()}
        self.blocks = nn.ModuleDict(layers)


def _hook_input(point: HookPoint, module: nn.Module) -> Any:
    def show(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (point(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": point(kwargs["hidden_states"])}

    return module.register_forward_pre_hook(show, with_kwargs=True)


def _hook_input_in_place(point: HookPoint, module: nn.Module) -> Any:
    def show(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stream = args[0] if args else kwargs["hidden_states"]
        # A copy, since caches keep what hooks see; in place, since the layer has already put the same tensor aside as
        # the residual stream that the MLP's output is added to.
        stream.copy_(point(stream.clone()))

    return module.register_forward_pre_hook(show, with_kwargs=True)


def _hook_output(point: HookPoint, module: nn.Module) -> Any:
    def show(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return (point(output[0]), *output[1:]) if isinstance(output, tuple) else point(output)

    return module.register_forward_hook(show)
