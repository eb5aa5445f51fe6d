"""A key-value cache that keeps everything for heads that see everything, and little for the others."""

from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin

from corelens.attention import Rows
from corelens.sparse.plan import LayerPlan

GROWTH = 1.5
"""By how much the buffers of whole heads grow when they are full."""


class Held:
    """New keys and values on their way from the cache to the attention function, which knows what to keep of them."""

    def __init__(self, layer: "HeadSparseLayer", key: Tensor, value: Tensor) -> None:
        self.layer, self.key, self.value = layer, key, value

    def __getattr__(self, name: str) -> NoReturn:
        raise TypeError(
            f"this model's attention uses `{name}` of cached keys before it hands them to its attention function, so "
            f"heads cannot be cached apart: its plan works without a cache only."
        )


class HeadSparseLayer(CacheLayerMixin):
    """Keys and values of one layer: growing buffers of whole heads; of streaming heads a ring and kept tokens.

    A streaming head's tensors have `window` slots for the last positions, position p in slot p modulo `window`, and
    after these the kept ones. A kept token counts only where it has left the window.
    """

    is_sliding = False
    is_croppable = False

    def __init__(self, plan: LayerPlan, reserved: int = 0) -> None:
        """
        Args:
            plan: Which heads keep what.
            reserved: For how many positions whole heads have room from the beginning.
        """
        super().__init__()
        self.plan, self.reserved = plan, reserved
        self.seen = 0
        """How many positions have come, padding included."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        batch, window = len(key_states), 0 if self.plan.streaming is None else self.plan.streaming.window
        self.whole_key, self.whole_value = (_empty(new, self.plan.whole, 0) for new in (key_states, value_states))
        self.window_key, self.window_value = (
            _empty(new, self.plan.window, window).zero_() for new in (key_states, value_states)
        )
        self.kept = torch.empty(batch, 0, dtype=torch.long, device=self.device)
        """Positions of the kept tokens [batch kept], -1 where a sample has fewer."""
        # Numbers that say, without a look at the device, when no mask is needed any more.
        self.longest_padding = 0
        self.sinks_from = 0
        """From which position on no token is a sink of any sample."""
        self.all_kept_from = 0
        """From which position on every kept token of every sample has left the window."""
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Hands the new keys and values on; the attention function calls `append` when it knows the padding."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        held = Held(self, key_states, value_states)
        return held, held

    def append_whole(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Adds positions to whole heads, [batch kv_head position d]; returns all of them so far."""
        needed = self.seen + key.shape[2]
        if needed > self.whole_key.shape[2]:
            room = max(needed, self.reserved, int(self.seen * GROWTH))
            self.whole_key = _grown(self.whole_key, room)
            self.whole_value = _grown(self.whole_value, room)
        self.whole_key[:, :, self.seen : needed] = key
        self.whole_value[:, :, self.seen : needed] = value
        return self.whole_key[:, :, :needed], self.whole_value[:, :, :needed]

    def keep(
        self,
        key: Float[Tensor, "batch kv_head position d"],
        value: Float[Tensor, "batch kv_head position d_v"],
        start: Int[Tensor, "batch"] | None,
        text: Bool[Tensor, "batch position"] | None,
    ) -> None:
        """Keeps what has to be kept of new positions of streaming heads.

        Args:
            key: New keys.
            value: New values.
            start: The first position of each sample that is not padding.
            text: Which of the new positions are text of the prompt; None for none.
        """
        assert self.plan.streaming is not None
        sink, n = self.plan.streaming.sink, key.shape[2]
        if self.seen >= self.sinks_from and self.seen and text is None:
            return
        position = torch.arange(self.seen, self.seen + n, device=key.device).expand(len(key), -1)
        begin = torch.zeros(len(key), 1, dtype=torch.long, device=key.device) if start is None else start[:, None]
        kept = (position >= begin) & (position < begin + sink)
        if text is not None:
            kept |= text & (position >= begin)
        self.longest_padding = int(begin.max())
        self.sinks_from = self.longest_padding + max(sink, 1)
        if not kept.any():
            return
        rows = Rows.of(kept)
        self.kept = torch.cat([self.kept, torch.where(rows.real, rows.position + self.seen, -1)], 1)
        self.window_key = torch.cat([self.window_key, rows.take(key)], 2)
        self.window_value = torch.cat([self.window_value, rows.take(value)], 2)
        never = torch.iinfo(torch.long).max
        self.all_kept_from = never if (self.kept < 0).any() else int(self.kept.max()) + self.plan.streaming.window

    def recent(self) -> tuple[Tensor, Tensor, int]:
        """The last positions of streaming heads, in order, as many as a next token still sees; and the first of them."""
        assert self.plan.streaming is not None
        window = self.plan.streaming.window
        first = max(0, self.seen - window + 1)
        slots = torch.arange(first, self.seen, device=self.device) % window
        return self.window_key[:, :, slots], self.window_value[:, :, slots], first

    def roll(self, key: Tensor, value: Tensor) -> None:
        """Writes new positions of streaming heads over the oldest of the ring."""
        assert self.plan.streaming is not None
        window, n = self.plan.streaming.window, key.shape[2]
        slots = torch.arange(self.seen + max(0, n - window), self.seen + n, device=self.device) % window
        self.window_key[:, :, slots] = key[:, :, -window:]
        self.window_value[:, :, slots] = value[:, :, -window:]

    def window_positions(self) -> Int[Tensor, "batch slot"]:
        """The position in every slot of streaming heads, -1 where it is empty, or kept and not yet out of the window.

        The newest position is `seen` - 1.
        """
        assert self.plan.streaming is not None
        window, last = self.plan.streaming.window, self.seen - 1
        slot = torch.arange(window, device=self.device)
        ring = (last - (last - slot) % window).clamp(min=-1).expand(len(self.kept), -1)
        return torch.cat([ring, torch.where(self.kept <= last - window, self.kept, -1)], 1)

    @property
    def window_is_settled(self) -> bool:
        """Whether all slots of streaming heads are seen by the newest position, so that no mask is needed."""
        assert self.plan.streaming is not None
        last = self.seen - 1
        return last >= self.all_kept_from and last - self.plan.streaming.window + 1 >= self.longest_padding

    @property
    def nbytes(self) -> int:
        """Bytes held, room that is not used yet included."""
        return sum(tensor.nbytes for tensor in self._tensors().values()) if self.is_initialized else 0

    def get_seq_length(self) -> int:
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        self.seen, self.is_initialized = 0, False

    def reorder_cache(self, beam_idx: Int[Tensor, "batch"]) -> None:
        for name, tensor in self._tensors().items():
            setattr(self, name, tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        for name, tensor in self._tensors().items():
            setattr(self, name, tensor.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        for name, tensor in self._tensors().items():
            setattr(self, name, tensor[indices])

    def _tensors(self) -> Mapping[str, Tensor]:
        names = ("whole_key", "whole_value", "window_key", "window_value", "kept")
        return {name: getattr(self, name) for name in names}


class HeadSparseCache(Cache):
    """The cache of a model under a plan; layers without one keep what they always keep."""

    def __init__(self, config: PreTrainedConfig, layers: Mapping[int, LayerPlan], reserved: int = 0) -> None:
        """
        Args:
            config: The model's.
            layers: The plans of layers, by their number.
            reserved: For how many positions there is room from the beginning; more come at the price of a copy.
        """
        stock = DynamicCache(config=config)
        planned = [
            HeadSparseLayer(layers[number], reserved) if number in layers else layer
            for number, layer in enumerate(stock.layers)
        ]
        super().__init__(layers=planned)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values that are held."""
        return sum(_bytes(layer) for layer in self.layers)
