"""The hook points of one decoder layer, and how they connect to it for the length of a pass."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from corelens.attention import AttentionTap
from corelens.sites import LayerSite


class HookedAttention(nn.Module):
    """The hook points of one layer's attention.

    - `hook_q`: [batch query head d_qk], normed and rotated, as they meet the keys
    - `hook_k`: [batch key kv_head d_qk] and `hook_v`: [batch key kv_head d_head], cached positions included; an edit
      acts on this pass and does not change the cache
    - `hook_attn_scores`, `hook_pattern`: [batch head query key] in float32, before and after the softmax
    - `hook_z`: [batch query head d_head], what each head found, before W_O
    """

    def __init__(self, site: LayerSite) -> None:
        super().__init__()
        self._site = site
        self.hook_q, self.hook_k, self.hook_v = HookPoint(), HookPoint(), HookPoint()
        self.hook_attn_scores, self.hook_pattern, self.hook_z = HookPoint(), HookPoint(), HookPoint()

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:
        """What turns each head's output into what it writes to the residual stream."""
        return rearrange(self._site.w_o.weight, "d_model (head d_head) -> head d_head d_model", head=self._site.n_heads)

    def tap(self, queries: Bool[Tensor, "batch position"] | None) -> AttentionTap:
        """These hook points as the attention function takes them."""
        points = {name: point for name, point in self.named_children() if isinstance(point, HookPoint)}
        return AttentionTap(**points, queries=queries)


class HookedBlock(nn.Module):
    """The hook points of one decoder layer, all [batch position d_model]."""

    def __init__(self, site: LayerSite) -> None:
        super().__init__()
        self._site = site
        self.hook_resid_pre = HookPoint()
        self.attn = HookedAttention(site)
        self.hook_attn_out, self.hook_resid_mid = HookPoint(), HookPoint()
        self.hook_mlp_out, self.hook_resid_post = HookPoint(), HookPoint()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Connects the residual hook points that have hooks to the Hugging Face layer until the block ends."""
        site = self._site
        connections = [
            (self.hook_resid_pre, site.block, _at_input),
            (self.hook_attn_out, site.attn_out, _at_output),
            (self.hook_resid_mid, site.before_mlp, _at_input_in_place),
            (self.hook_mlp_out, site.mlp_out, _at_output),
            (self.hook_resid_post, site.block, _at_output),
        ]
        with ExitStack() as undo:
            for point, module, connect in connections:
                if point.has_hooks():
                    undo.callback(connect(point, module).remove)
            yield


def _at_input(point: HookPoint, module: nn.Module) -> Any:
    def show(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (point(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": point(kwargs["hidden_states"])}

    return module.register_forward_pre_hook(show, with_kwargs=True)


def _at_input_in_place(point: HookPoint, module: nn.Module) -> Any:
    def show(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stream = args[0] if args else kwargs["hidden_states"]
        # A copy, since caches keep what hooks see; in place, since the layer has already put the same tensor aside as
        # the residual stream that the MLP's output is added to.
        stream.copy_(point(stream.clone()))

    return module.register_forward_pre_hook(show, with_kwargs=True)


def _at_output(point: HookPoint, module: nn.Module) -> Any:
    def show(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return (point(output[0]), *output[1:]) if isinstance(output, tuple) else point(output)

    return module.register_forward_hook(show)
