"""HookedLayers: the hook points of a Hugging Face model, and hooks added by names that are checked."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint
from transformers import PreTrainedModel

from corelens.errors import docs_link
from corelens.heads import Head
from corelens.hf.architecture import decoder_layers, final_norm, vision_layers
from corelens.hf.layers import DecoderLayer
from corelens.hf.module_outputs import vision_towers
from corelens.hf.prefix_cache import PrefixCache
from corelens.hf.wrapped_modules import WrappedModules
from corelens.hooks.cache_size import CacheShape, activation_sizes, warn_if_large
from corelens.hooks.connect import begin_pass, connected
from corelens.hooks.points import (
    HookedBlock,
    HookedVision,
    NamesFilter,
    check_heads,
    check_hook_name,
    layer_of,
    matching_names,
    names_selector,
)
from corelens.hooks.positions import batch_shape
from corelens.hooks.rows import Hooks, limit_rows, row_mask
from corelens.hooks.sublayers import HookedNorm
from corelens.hooks.threads import RawCallGuard, lock_of, pass_through_corelens
from corelens.tokens import TokenMap


class HookedLayers(HookedRootModule):
    """The hook points of a Hugging Face model: TransformerLens's root module, with checks.

    Names of hook points and filters of names that match none raise an error. While hooks wait, so do calls of the
    Hugging Face model itself, since these would run without them.
    """

    def __init__(self, hf_model: nn.Module) -> None:
        """Find the layers and attention modules of a model."""
        super().__init__()
        if hasattr(hf_model, "_orig_mod"):
            raise TypeError(
                f"the model is compiled; wrap it before torch.compile, since hooks need its Python code. "
                f"{docs_link('compiled')}"
            )
        if not isinstance(hf_model, PreTrainedModel):
            raise TypeError(f"{type(hf_model).__name__} is not a Hugging Face model (transformers.PreTrainedModel).")
        layers = decoder_layers(hf_model)
        vision, self._no_vision = vision_layers(hf_model, layers)
        # Past nn.Module's registration: TransformerLens names every submodule, and the model is not ours to name.
        self.__dict__["hf_model"] = hf_model
        stack, attentions = layers[0].stack, list(vision.values())
        modules = {stack, *(attention.module for attention in attentions)}
        for layer in layers:
            attentions += layer.attentions.values()
            modules |= {layer.block, *layer.norms.values(), *(location.module for location in layer.points.values())}
            modules |= set() if layer.mlp is None else {layer.mlp.module}
            modules |= set() if layer.experts is None else {layer.experts.module, *layer.experts.routers}
        modules |= {attention.module for attention in attentions}
        # W_O itself may be replaced, by an adapter; what holds it may not.
        modules |= {attention.w_o_owner for attention in attentions if attention.w_o_owner is not None}
        norm = final_norm(stack)
        self._wrapped = WrappedModules(hf_model, modules if norm is None else modules | {norm})
        self._raw_calls = RawCallGuard(hf_model, [stack, *vision_towers(hf_model)])
        self._lock = lock_of(hf_model)
        self.hook_embed = HookPoint()
        self.blocks = nn.ModuleList(HookedBlock(layer, self._wrapped) for layer in layers)
        if norm is not None:
            self.ln_final = HookedNorm(norm, self._wrapped)
        self.vision = HookedVision(vision, self._wrapped)
        self.setup()

    @property
    def hf_model(self) -> PreTrainedModel:
        """The wrapped model."""
        return self.__dict__["hf_model"]

    @property
    def hf_layers(self) -> list[DecoderLayer]:
        """The wrapped model's decoder layers, and their attention modules."""
        return [block.hf_layer for block in self._blocks]

    @property
    def _blocks(self) -> list[HookedBlock]:
        return list(self.blocks)  # pyright: ignore[reportReturnType]

    @property
    def _ln_final(self) -> HookedNorm | None:
        return self._modules.get("ln_final")  # pyright: ignore[reportReturnType]

    def check_heads(self, heads: Iterable[Head]) -> None:
        """Raise a ValueError that names the first head that the model does not have."""
        check_heads(heads, self.hf_layers)

    def check_repeatable(self) -> None:
        """Raise a RuntimeError if passes drop activations at random: the model is in training mode, with dropout."""
        self._wrapped.check_repeatable()

    def add_hook(
        self,
        name: str | Callable[[str], bool],
        hook: Callable[..., Any],
        dir: Literal["fwd", "bwd"] = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Add a hook that stays until `reset_hooks`; see TransformerLens."""
        self._check_hooks([(name, hook)])
        ((name, hook),) = limit_rows([(name, hook)], None)
        super().add_hook(name, hook, dir, is_permanent, level, prepend)
        self._raw_calls.update(hooks_wait=True)

    def remove_all_hook_fns(
        self,
        direction: Literal["fwd", "bwd", "both"] = "both",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Remove hooks; see TransformerLens."""
        super().remove_all_hook_fns(direction, including_permanent, level)
        self._raw_calls.update(self._has_hooks)

    def get_caching_hooks(self, names_filter: NamesFilter = None, *args: Any, **kwargs: Any) -> tuple[Any, Any, Any]:
        """Build hooks that cache activations, and the cache; see TransformerLens."""
        return super().get_caching_hooks(self._selector(names_filter), *args, **kwargs)

    def add_caching_hooks(self, names_filter: NamesFilter = None, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Add hooks that cache activations, and return the cache; see TransformerLens."""
        cache = super().add_caching_hooks(self._selector(names_filter), *args, **kwargs)
        self._raw_calls.update(self._has_hooks)
        return cache

    def list_hooks(self, name_filter: NamesFilter = None, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Hooks that are attached, by the name of their hook point; see TransformerLens."""
        filter_of_names = None if name_filter is None else self._selector(name_filter)
        return super().list_hooks(filter_of_names, *args, **kwargs)

    @contextmanager
    def connected(
        self, tensors: Mapping[str, Any], tokens: TokenMap | None = None, prefix: PrefixCache | None = None
    ) -> Iterator[None]:
        """Connect all hook points that have hooks to `hf_model`, for one pass or generation over these tensors."""
        state = begin_pass(self.hf_model, self.hf_layers, tensors, tokens, prefix)
        with (
            self._lock,
            pass_through_corelens(self.hf_model),
            connected(self._wrapped, self._blocks, self.vision, (self.hook_embed, self._ln_final), state),
        ):
            yield

    @contextmanager
    def _attached(
        self, fwd_hooks: Hooks, bwd_hooks: Hooks, reset_hooks_end: bool, clear_contexts: bool
    ) -> Iterator[None]:
        """Attach hooks to their points until the block ends; other threads wait."""
        with self._lock, super().hooks([*fwd_hooks], [*bwd_hooks], reset_hooks_end, clear_contexts):
            self._raw_calls.update(self._has_hooks)
            yield

    def _check_hooks(self, hooks: Hooks) -> None:
        """Raise a ValueError if a head or a hook point does not exist, or a filter selects none."""
        for name, function in hooks:
            # Heads before names, for the clearer message.
            self.check_heads(getattr(function, "heads", ()))
            if isinstance(name, str):
                self.check_hook_name(name)
            else:
                matching_names(name, self.hook_dict)

    def _check_reached(self, stop_at_layer: int) -> None:
        """Raise a ValueError if a hook would not act in a pass that stops before a layer."""
        for name, point in self.hook_dict.items():
            if point.has_hooks() and not _is_reached(name, stop_at_layer):
                later = f", or stop at layer {layer_of(name) + 1}" if name.startswith("blocks.") else ""
                raise ValueError(
                    f"the hook on {name} never acts: the pass stops before layer {stop_at_layer}. Leave it out{later}."
                )

    def _reached(self, stop_at_layer: int) -> list[str]:
        """Names of the hook points that are called in a pass that stops before a layer."""
        return [name for name in self.hook_dict if _is_reached(name, stop_at_layer)]

    def _warn_of_size(
        self,
        selects: Callable[[str], bool],
        tensors: Mapping[str, Any],
        queries: Bool[Tensor, "batch position"] | None,
        device: torch.device | str | None,
    ) -> None:
        """Warn of a cache that would take more than half of the memory that is free."""
        n_samples, n_positions = batch_shape(tensors)
        n_rows = n_positions if queries is None else row_mask(queries).shape[1]
        d_model = next(attention.d_model for layer in self.hf_layers for attention in layer.attentions.values())
        shape = CacheShape(n_samples, n_positions, n_rows, d_model, self.hf_model.dtype)
        sizes = activation_sizes(self, filter(selects, self.hook_dict), shape)
        warn_if_large(sizes, torch.device(device or self.hf_model.device))

    @property
    def _has_hooks(self) -> bool:
        return any(point.has_hooks() for point in self.hook_points())

    def _selector(self, names_filter: NamesFilter) -> Callable[[str], bool]:
        return names_selector(names_filter, self.hook_dict, self.check_hook_name)

    def check_hook_name(self, name: str) -> None:
        """Raise a ValueError if there is no hook point of this name, with the reason."""
        check_hook_name(name, self.hook_dict, self.hf_layers, self._no_vision)


def _is_reached(name: str, stop_at_layer: int) -> bool:
    """True if a hook point is called in a pass that stops before a layer."""
    if not name.startswith("blocks."):
        return not name.startswith("ln_final.")
    return layer_of(name) < stop_at_layer or name == f"blocks.{stop_at_layer}.hook_resid_pre"
