"""A layer's cache in tensors that never change their shape or place, so that decoding compiles into one graph."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig, StaticCache
from transformers.cache_utils import DynamicLayer

from corelens.sparse.cache_layer import HeadSparseLayer, KeyValues, empty_key_values
from corelens.sparse.plan import LayerPlan


class StaticHeadSparseLayer(HeadSparseLayer):
    """Room for the sinks comes after the window, and after it one slot for what is not kept."""

    is_compileable = True
    masks_always = True

    def __init__(self, plan: LayerPlan, reserved: int) -> None:
        """An empty layer with room for `reserved` positions."""
        super().__init__(plan, reserved)
        if plan.streaming is not None and plan.streaming.keep_text:
            raise ValueError("a static cache has no room for the text of a prompt: use the growing one with text=True.")
        self.seen = torch.tensor(0)

    @property
    def n_seen(self) -> int:
        return int(self.seen)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.seen = self.seen.to(self.device)
        self.whole = empty_key_values(self.whole, self.reserved)
        self.window = empty_key_values(self.window, self._window + self._sink + 1)
        self.kept = torch.full((len(key_states), self._sink + 1), -1, device=self.device)
        if not torch.compiler.is_compiling():
            for tensor in (self.seen, self.kept, *self.whole, *self.window):
                torch._dynamo.mark_static_address(tensor)

    def append(self, new: KeyValues) -> KeyValues:
        if new.n > 1:
            if (needed := self.n_seen + new.n) > self.reserved:
                raise ValueError(f"a static cache with room for {self.reserved} positions cannot hold {needed}.")
            return super().append(new)
        for mine, theirs in zip(self.whole, new.of(self.plan.whole), strict=True):
            mine.index_copy_(2, self.seen[None], theirs)
        return self.whole

    def retain(
        self, new: KeyValues, start: Int[Tensor, "batch"] | None, text: Bool[Tensor, "batch position"] | None
    ) -> None:
        position = (self.seen + torch.arange(new.n, device=self.device)).expand(len(self.kept), -1)
        rank = position if start is None else position - start[:, None]
        place = torch.where((rank >= 0) & (rank < self._sink), rank, self._sink)
        self.kept.scatter_(1, place, position)
        self.kept[:, self._sink] = -1
        for mine, theirs in zip(self.window, new, strict=True):
            mine.scatter_(2, (self._window + place)[:, None, :, None].expand_as(theirs), theirs)

    def get_seq_length(self) -> Any:
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.reserved, 0

    def get_max_length(self) -> int:
        return self.reserved

    def reset(self) -> None:
        super().reset()
        self.seen = torch.tensor(0)

    @property
    def _sink(self) -> int:
        return 0 if self.plan.streaming is None else self.plan.streaming.sink


class HeadSparseCache(Cache):
    """The cache of a model under a plan; layers without one keep what they always keep."""

    def __init__(
        self, config: PreTrainedConfig, layers: Mapping[int, LayerPlan], reserved: int = 0, static: bool = False
    ) -> None:
        """An empty cache.

        Args:
            config: The model's.
            layers: The plans of layers, by number.
            reserved: For how many positions there is room from the beginning; more positions cost copies.
            static: Whether there is room for these positions only, so that decoding can be compiled.
        """
        self.plans = layers
        stock = StaticCache(config=config, max_cache_len=reserved) if static else DynamicCache(config=config)
        kind = StaticHeadSparseLayer if static else HeadSparseLayer
        super().__init__(
            layers=[
                kind(layers[number], reserved) if number in layers else layer
                for number, layer in enumerate(stock.layers)
            ]
        )

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values of the planned layers."""
        return sum(layer.nbytes for layer in self.layers if isinstance(layer, HeadSparseLayer))


def plannable(config: PreTrainedConfig) -> list[int]:
    """The layers that keep keys and values of all positions and nothing else; none if layers share theirs."""
    if "reuse" in (getattr(config.get_text_config(decoder=True), "kv_sharing_modes", None) or ()):
        return []
    return [number for number, layer in enumerate(DynamicCache(config=config).layers) if type(layer) is DynamicLayer]
