"""KV cache of a model under a plan, growing or static, and the layers that can be planned."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig, StaticCache
from transformers.cache_utils import DynamicLayer

from corelens.sparse.cache_layer import HeadSparseLayer, KeyValues, empty_key_values
from corelens.sparse.plan import LayerPlan


def plannable_layers(config: PreTrainedConfig) -> list[int]:
    """Return the layers that cache keys and values of all positions and nothing else; none if layers share theirs."""
    if "reuse" in (getattr(config.get_text_config(decoder=True), "kv_sharing_modes", None) or ()):
        return []
    return [number for number, layer in enumerate(DynamicCache(config=config).layers) if type(layer) is DynamicLayer]


class HeadSparseCache(Cache):
    """KV cache of a model under a plan; layers that follow none have Hugging Face's."""

    def __init__(
        self, config: PreTrainedConfig, layers: Mapping[int, LayerPlan], reserved: int = 0, static: bool = False
    ) -> None:
        """Make an empty cache.

        Args:
            config: Configuration of the model.
            layers: Plans of layers, by number.
            reserved: Number of positions allocated from the beginning; more positions cost copies.
            static: True if the cache holds these positions at most, so that decoding can be compiled.
        """
        self.plans = layers
        stock = StaticCache(config=config, max_cache_len=reserved) if static else DynamicCache(config=config)
        layer_class = StaticHeadSparseLayer if static else HeadSparseLayer
        super().__init__(
            layers=[
                layer_class(layers[number], reserved) if number in layers else layer
                for number, layer in enumerate(stock.layers)
            ]
        )

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values of the planned layers."""
        return sum(layer.nbytes for layer in self.layers if isinstance(layer, HeadSparseLayer))


class StaticHeadSparseLayer(HeadSparseLayer):
    """A cache layer whose tensors never change their shape or address, so that decoding compiles into one graph.

    In the window cache the slots of the sinks come after those of the window, and after them one slot for what is not
    retained.
    """

    is_compileable = True
    always_masks = True

    def __init__(self, plan: LayerPlan, reserved: int) -> None:
        """Make an empty layer with room for `reserved` positions."""
        super().__init__(plan, reserved)
        if plan.streaming is not None and plan.streaming.keep_text:
            raise ValueError(
                "a static cache has no room for the text of a prompt: use the growing one with keep_text=True."
            )
        self.cumulative_length = torch.tensor(0)

    @property
    def n_positions(self) -> int:
        return int(self.cumulative_length)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.cumulative_length = self.cumulative_length.to(self.device)
        self.full_cache = empty_key_values(self.full_cache, self.reserved)
        self.window_cache = empty_key_values(self.window_cache, self._window_size + self._n_sinks + 1)
        self.retained_positions = torch.full((len(key_states), self._n_sinks + 1), -1, device=self.device)
        if not torch.compiler.is_compiling():
            for tensor in (self.cumulative_length, self.retained_positions, *self.full_cache, *self.window_cache):
                torch._dynamo.mark_static_address(tensor)

    def append(self, new: KeyValues) -> KeyValues:
        if new.n > 1:
            if (needed := self.n_positions + new.n) > self.reserved:
                raise ValueError(f"a static cache with room for {self.reserved} positions cannot hold {needed}.")
            return super().append(new)
        for cached, added in zip(self.full_cache, new.select_heads(self.plan.full_kv_heads), strict=True):
            cached.index_copy_(2, self.cumulative_length[None], added)
        return self.full_cache

    def retain(
        self, new: KeyValues, start: Int[Tensor, "batch"] | None, text: Bool[Tensor, "batch position"] | None
    ) -> None:
        batch = len(self.retained_positions)
        position = (self.cumulative_length + torch.arange(new.n, device=self.device)).expand(batch, -1)
        rank = position if start is None else position - start[:, None]
        slot = torch.where((rank >= 0) & (rank < self._n_sinks), rank, self._n_sinks)
        self.retained_positions.scatter_(1, slot, position)
        self.retained_positions[:, self._n_sinks] = -1
        for cached, added in zip(self.window_cache, new, strict=True):
            cached.scatter_(2, (self._window_size + slot)[:, None, :, None].expand_as(added), added)

    def get_seq_length(self) -> Any:
        return self.cumulative_length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.reserved, 0

    def get_max_length(self) -> int:
        return self.reserved

    def reset(self) -> None:
        super().reset()
        self.cumulative_length = torch.tensor(0)

    @property
    def _n_sinks(self) -> int:
        return 0 if self.plan.streaming is None else self.plan.streaming.sink
