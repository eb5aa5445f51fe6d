"""Keys and values of one layer under a plan: all positions for full heads, sinks and a window for streaming heads."""

from functools import cache
from typing import Any, NamedTuple, NoReturn

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from corelens.hooks.rows import QueryRows
from corelens.sparse.plan import LayerPlan


class KeyValues(NamedTuple):
    """Keys and values of the same heads and positions."""

    key: Float[Tensor, "batch kv_head position d"]
    value: Float[Tensor, "batch kv_head position d_v"]

    def select_heads(self, kv_heads: tuple[int, ...]) -> "KeyValues":
        """Select heads by number."""
        return KeyValues(select_heads(self.key, kv_heads), select_heads(self.value, kv_heads))

    def from_position(self, first: int) -> "KeyValues":
        """Return all positions from `first` on."""
        return KeyValues(self.key[:, :, first:], self.value[:, :, first:])

    def at(self, position: Int[Tensor, "batch retained"]) -> "KeyValues":
        """Gather positions of each sample; anything where the position is negative."""

        def gather(tensor: Tensor) -> Tensor:
            index = position.clamp(min=0)[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[-1])
            return tensor.gather(2, index)

        return KeyValues(gather(self.key), gather(self.value))

    def concat(self, other: "KeyValues") -> "KeyValues":
        """Concatenate with the positions that follow."""
        return KeyValues(torch.cat([self.key, other.key], 2), torch.cat([self.value, other.value], 2))

    @property
    def n(self) -> int:
        """Number of positions."""
        return self.key.shape[2]


GROWTH = 1.5
"""Factor by which the buffers of the full cache grow."""


class HeadSparseLayer(CacheLayerMixin):
    """Keys and values of one layer.

    The full cache has buffers that grow. The window cache has one slot for each position of the window, position p in
    slot p modulo the window's size, and after these the retained tokens (sinks, and text if the plan keeps it), which
    count only where they have left the window.
    """

    is_sliding = False
    is_croppable = False
    always_masks = False
    """True if a mask is made for every token, also where it masks nothing."""

    def __init__(self, plan: LayerPlan, reserved: int = 0) -> None:
        """Make an empty layer.

        Args:
            plan: Rules of the layer's heads.
            reserved: Number of positions for which the full cache is allocated from the beginning.
        """
        super().__init__()
        self.plan, self.reserved = plan, reserved
        self.cumulative_length: Any = 0
        """Number of positions so far, padding included; a tensor in a static cache."""

    @property
    def n_positions(self) -> int:
        """Number of positions so far as an int, for passes over prompts."""
        return self.cumulative_length

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        new = KeyValues(key_states, value_states)
        self.full_cache = empty_key_values(new.select_heads(self.plan.full_kv_heads), 0)
        self.window_cache = empty_key_values(new.select_heads(self.plan.window_kv_heads), self._window_size)
        self.retained_positions: Int[Tensor, "batch retained"] = torch.empty(
            len(key_states), 0, dtype=torch.long, device=self.device
        )
        """Positions of the retained tokens, -1 where a sample has fewer."""
        # Ints that tell, without a synchronization with the device, when nothing is left to retain or to mask.
        self.longest_padding = self.sinks_end = 0
        self.first_disjoint = 0
        """First position whose window holds no retained token."""
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Hand new keys and values on to the attention function, which stores them."""
        if (n_kv_heads := key_states.shape[1]) != self.plan.n_kv_heads:
            raise ValueError(
                f"this model caches {n_kv_heads} KV heads and not {self.plan.n_kv_heads}: compressed keys cannot be "
                f"stored for some heads only."
            )
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        pending = PendingKeyValues(self, KeyValues(key_states, value_states))
        return pending, pending

    def append(self, new: KeyValues) -> KeyValues:
        """Append new positions to the full cache, and return all positions of it."""
        needed = self.n_positions + new.n
        if needed > self.full_cache.n:
            previous = self.full_cache
            capacity = max(needed, self.reserved, int(self.n_positions * GROWTH))
            self.full_cache = empty_key_values(previous, capacity)
            for cached, copied in zip(self.full_cache, previous, strict=True):
                cached[:, :, : self.n_positions] = copied[:, :, : self.n_positions]
        for cached, added in zip(self.full_cache, new.select_heads(self.plan.full_kv_heads), strict=True):
            cached[:, :, self.n_positions : needed] = added
        return KeyValues(self.full_cache.key[:, :, :needed], self.full_cache.value[:, :, :needed])

    def retain(
        self, new: KeyValues, start: Int[Tensor, "batch"] | None, text: Bool[Tensor, "batch position"] | None
    ) -> None:
        """Store those of the new positions that streaming heads retain for good.

        Args:
            new: Keys and values of the window cache's heads.
            start: First position of each sample that is not padding; None without padding.
            text: True for the new positions that are text to retain.
        """
        rule = self.plan.streaming
        if rule is None or (text is None and 0 < self.sinks_end <= self.n_positions):
            return
        batch, n = new.key.shape[0], new.n
        position = torch.arange(self.n_positions, self.n_positions + n, device=self.device).expand(batch, -1)
        begin = position.new_zeros(batch, 1) if start is None else start[:, None]
        retained = position < begin + rule.sink
        retained = (retained if text is None else retained | text) & (position >= begin)
        self.longest_padding = int(begin.max())
        self.sinks_end = self.longest_padding + max(rule.sink, 1)
        if retained.any():
            rows = QueryRows.of(retained)
            added = torch.where(rows.real, rows.position + self.n_positions, -1)
            self.retained_positions = torch.cat([self.retained_positions, added], 1)
            self.window_cache = self.window_cache.concat(KeyValues(rows.take(new.key), rows.take(new.value)))
            even = bool((self.retained_positions >= 0).all())
            self.first_disjoint = (
                int(self.retained_positions.max()) + rule.window if even else torch.iinfo(torch.long).max
            )

    def recent(self) -> tuple[KeyValues, int]:
        """Return the positions of the window cache that the next token attends to, in order, and the first of them."""
        first = max(0, self.n_positions - self._window_size + 1)
        slot = torch.arange(first, self.n_positions, device=self.device) % self._window_size
        return KeyValues(self.window_cache.key[:, :, slot], self.window_cache.value[:, :, slot]), first

    def retained(self) -> KeyValues:
        """Return keys and values of the window cache's retained tokens."""
        return self.window_cache.from_position(self._window_size)

    def commit(self, new: KeyValues) -> None:
        """End a pass: write new positions over the oldest of the window cache."""
        if self.plan.window_kv_heads:
            position = self.cumulative_length + torch.arange(new.n, device=self.device)
            slot = position[-self._window_size :] % self._window_size
            for cached, added in zip(self.window_cache, new, strict=True):
                cached[:, :, slot] = added[:, :, -self._window_size :]
        self.cumulative_length += new.n

    def visible_in_full_cache(
        self, n_keys: int, start: Int[Tensor, "batch"] | None
    ) -> Bool[Tensor, "batch #head key"] | None:
        """Mask of the full cache's positions that each head of the newest token attends to; None for all."""
        is_streaming = self.plan.full_cache_streaming
        if start is None and not any(is_streaming) and not self.always_masks:
            return None
        batch = len(self.retained_positions)
        position = torch.arange(n_keys, device=self.device)
        visible = (position < self.cumulative_length)[None, None].expand(batch, 1, -1)
        if start is not None:
            visible = visible & (position >= start[:, None, None])
        if any(is_streaming):
            # One column more, for samples that retain fewer tokens than others.
            retained = torch.zeros(batch, n_keys + 1, dtype=torch.bool, device=self.device)
            column = torch.where(self.retained_positions < 0, n_keys, self.retained_positions)
            retained = retained.scatter(1, column, True)[:, None, :-1]
            full = ~on_device(is_streaming, self.device).bool()[:, None]
            visible = visible & (full | retained | (position >= self.cumulative_length - self._window_size))
        return visible

    def visible_in_window_cache(self, start: Int[Tensor, "batch"] | None) -> Bool[Tensor, "batch 1 slot"] | None:
        """Mask of the window cache's slots that the newest token attends to; None for all."""
        if (
            not self.always_masks
            and self.cumulative_length - self._window_size >= self.longest_padding
            and self.cumulative_length > self.first_disjoint
        ):
            return None
        last = self.cumulative_length - 1
        slot = torch.arange(self._window_size, device=self.device)
        position = (last - (last - slot) % self._window_size).expand(len(self.retained_positions), -1)
        begin = 0 if start is None else start[:, None]
        retained = (self.retained_positions >= 0) & (self.retained_positions <= last - self._window_size)
        return torch.cat([position >= begin, retained], 1)[:, None]

    @property
    def nbytes(self) -> int:
        """Bytes allocated, slots not used yet included."""
        return sum(tensor.nbytes for tensor in (*self.full_cache, *self.window_cache)) if self.is_initialized else 0

    def get_seq_length(self) -> int:
        return self.cumulative_length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cumulative_length + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        self.cumulative_length, self.is_initialized = 0, False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx.to(self.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        batch = len(self.retained_positions)
        self.batch_select_indices(torch.arange(batch, device=self.device).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        self.full_cache = KeyValues(*(tensor[indices] for tensor in self.full_cache))
        self.window_cache = KeyValues(*(tensor[indices] for tensor in self.window_cache))
        self.retained_positions = self.retained_positions[indices]

    @property
    def _window_size(self) -> int:
        return 0 if self.plan.streaming is None else self.plan.streaming.window


class PendingKeyValues:
    """New keys and values on their way from the cache to the attention function, which stores them by rule."""

    def __init__(self, layer: HeadSparseLayer, new: KeyValues) -> None:
        self.layer, self.new = layer, new

    def __getattr__(self, name: str) -> NoReturn:
        raise TypeError(
            f"this model's attention uses `{name}` of cached keys before it hands them to its attention function, so "
            f"its heads cannot be cached apart."
        )


def empty_key_values(like: KeyValues, n: int) -> KeyValues:
    """Allocate zero keys and values of the same heads for n positions."""
    return KeyValues(*(tensor.new_zeros(*tensor.shape[:2], n, tensor.shape[-1]) for tensor in like))


def select_heads(
    tensor: Float[Tensor, "batch head *rest"], heads: tuple[int, ...]
) -> Float[Tensor, "batch selected *rest"]:
    """Select heads of a tensor; a view of it if they are adjacent."""
    first = heads[0] if heads else 0
    if heads == tuple(range(first, first + len(heads))):
        return tensor[:, first : first + len(heads)]
    return tensor.index_select(1, on_device(heads, tensor.device))


@cache
def on_device(numbers: tuple[int, ...], device: torch.device) -> Int[Tensor, "head"]:
    """Put numbers of heads, or flags of heads, on a device, where they stay."""
    return torch.tensor(numbers, dtype=torch.long, device=device)
