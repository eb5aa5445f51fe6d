"""Keys and values of one layer: everything for heads that see everything, and little for the others."""

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

    def of(self, kv_heads: tuple[int, ...]) -> "KeyValues":
        """Of some heads, by number."""
        return KeyValues(select_heads(self.key, kv_heads), select_heads(self.value, kv_heads))

    def from_position(self, first: int) -> "KeyValues":
        """From a position on."""
        return KeyValues(self.key[:, :, first:], self.value[:, :, first:])

    def at(self, position: Int[Tensor, "batch kept"]) -> "KeyValues":
        """At some positions of each sample; anything where the position is negative."""

        def taken(tensor: Tensor) -> Tensor:
            index = position.clamp(min=0)[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[-1])
            return tensor.gather(2, index)

        return KeyValues(taken(self.key), taken(self.value))

    def concat(self, other: "KeyValues") -> "KeyValues":
        """These, and others after them."""
        return KeyValues(torch.cat([self.key, other.key], 2), torch.cat([self.value, other.value], 2))

    @property
    def n(self) -> int:
        """How many positions."""
        return self.key.shape[2]


def select_heads(
    tensor: Float[Tensor, "batch head *rest"], heads: tuple[int, ...]
) -> Float[Tensor, "batch chosen *rest"]:
    """Some heads of a tensor: a view of it if they stand side by side."""
    first = heads[0] if heads else 0
    if heads == tuple(range(first, first + len(heads))):
        return tensor[:, first : first + len(heads)]
    return tensor.index_select(1, on_device(heads, tensor.device))


@cache
def on_device(numbers: tuple[int, ...], device: torch.device) -> Int[Tensor, "head"]:
    """Numbers of heads, or of what is said of each, on a device, where they are brought once."""
    return torch.tensor(numbers, dtype=torch.long, device=device)


GROWTH = 1.5
"""By how much the buffers of whole heads grow when they are full."""


class PendingKeyValues:
    """New keys and values on their way from the cache to the attention function, which knows what to keep of them."""

    def __init__(self, layer: "HeadSparseLayer", keys: KeyValues) -> None:
        self.layer, self.keys = layer, keys

    def __getattr__(self, name: str) -> NoReturn:
        raise TypeError(
            f"this model's attention uses `{name}` of cached keys before it hands them to its attention function, so "
            f"its heads cannot be cached apart."
        )


class HeadSparseLayer(CacheLayerMixin):
    """Keys and values of one layer.

    Heads that are kept whole have buffers that grow. Streaming heads have `window` slots for the last positions,
    position p in slot p modulo `window`, and after these the kept tokens, which count only where they have left the
    window.
    """

    is_sliding = False
    is_croppable = False
    masks_always = False
    """Whether a mask is made for every token, also where all is seen."""

    def __init__(self, plan: LayerPlan, reserved: int = 0) -> None:
        """An empty layer.

        Args:
            plan: Which heads keep what.
            reserved: For how many positions whole heads have room from the beginning.
        """
        super().__init__()
        self.plan, self.reserved = plan, reserved
        self.seen: Any = 0
        """How many positions have come, padding included."""

    @property
    def n_seen(self) -> int:
        """The same as a plain number, for passes over prompts; a static cache counts on its device."""
        return self.seen

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        new = KeyValues(key_states, value_states)
        self.whole = empty_key_values(new.of(self.plan.whole), 0)
        self.window = empty_key_values(new.of(self.plan.window), self._window)
        self.kept: Int[Tensor, "batch kept"] = torch.empty(len(key_states), 0, dtype=torch.long, device=self.device)
        """Positions of the kept tokens, -1 where a sample has fewer."""
        # Plain numbers that say, without a look at the device, when there is nothing to keep or to mask any more.
        self.longest_padding = self.sinks_until = 0
        self.kept_leave = 0
        """From which newest position on all kept tokens have left the window."""
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Hands new keys and values on to the attention function, which adds them."""
        if (found := key_states.shape[1]) != self.plan.n_kv_heads:
            raise ValueError(
                f"this model keeps {found} heads of keys in its cache, and not {self.plan.n_kv_heads}: compressed keys "
                f"cannot be kept for some heads only."
            )
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        held = PendingKeyValues(self, KeyValues(key_states, value_states))
        return held, held

    def append(self, new: KeyValues) -> KeyValues:
        """Adds new positions to the heads that are kept whole, and returns all of these."""
        needed = self.n_seen + new.n
        if needed > self.whole.n:
            old, self.whole = (
                self.whole,
                empty_key_values(self.whole, max(needed, self.reserved, int(self.n_seen * GROWTH))),
            )
            for mine, theirs in zip(self.whole, old, strict=True):
                mine[:, :, : self.n_seen] = theirs[:, :, : self.n_seen]
        for mine, theirs in zip(self.whole, new.of(self.plan.whole), strict=True):
            mine[:, :, self.n_seen : needed] = theirs
        return KeyValues(self.whole.key[:, :, :needed], self.whole.value[:, :, :needed])

    def retain(
        self, new: KeyValues, start: Int[Tensor, "batch"] | None, text: Bool[Tensor, "batch position"] | None
    ) -> None:
        """Keeps those of the new positions of streaming heads that are never forgotten.

        Args:
            new: Of streaming heads.
            start: The first position of each sample that is not padding; None without padding.
            text: Which of the new positions are text to keep.
        """
        rule = self.plan.streaming
        if rule is None or (text is None and 0 < self.sinks_until <= self.n_seen):
            return
        batch, n = new.key.shape[0], new.n
        position = torch.arange(self.n_seen, self.n_seen + n, device=self.device).expand(batch, -1)
        begin = position.new_zeros(batch, 1) if start is None else start[:, None]
        kept = position < begin + rule.sink
        kept = (kept if text is None else kept | text) & (position >= begin)
        self.longest_padding = int(begin.max())
        self.sinks_until = self.longest_padding + max(rule.sink, 1)
        if kept.any():
            rows = QueryRows.of(kept)
            self.kept = torch.cat([self.kept, torch.where(rows.real, rows.position + self.n_seen, -1)], 1)
            self.window = self.window.concat(KeyValues(rows.take(new.key), rows.take(new.value)))
            even = bool((self.kept >= 0).all())
            self.kept_leave = int(self.kept.max()) + rule.window if even else torch.iinfo(torch.long).max

    def recent(self) -> tuple[KeyValues, int]:
        """The positions of streaming heads that a next token still sees, in order, and the number of the first."""
        first = max(0, self.n_seen - self._window + 1)
        slot = torch.arange(first, self.n_seen, device=self.device) % self._window
        return KeyValues(self.window.key[:, :, slot], self.window.value[:, :, slot]), first

    def kept_keys(self) -> KeyValues:
        """Keys and values of the kept tokens of streaming heads."""
        return self.window.from_position(self._window)

    def commit(self, new: KeyValues) -> None:
        """Ends a pass: new positions of streaming heads take the place of the oldest."""
        if self.plan.window:
            slot = (self.seen + torch.arange(new.n, device=self.device))[-self._window :] % self._window
            for mine, theirs in zip(self.window, new, strict=True):
                mine[:, :, slot] = theirs[:, :, -self._window :]
        self.seen += new.n

    def visible_of_whole(
        self, n_keys: int, start: Int[Tensor, "batch"] | None
    ) -> Bool[Tensor, "batch #head key"] | None:
        """Which positions of the heads that are kept whole the newest token sees, head by head; None for all."""
        streams = self.plan.streams_of_whole
        if start is None and not any(streams) and not self.masks_always:
            return None
        position = torch.arange(n_keys, device=self.device)
        visible = (position < self.seen)[None, None].expand(len(self.kept), 1, -1)
        if start is not None:
            visible = visible & (position >= start[:, None, None])
        if any(streams):
            # One column more for the places where a sample keeps nothing.
            kept = torch.zeros(len(self.kept), n_keys + 1, dtype=torch.bool, device=self.device)
            kept = kept.scatter(1, torch.where(self.kept < 0, n_keys, self.kept), True)[:, None, :-1]
            full = ~on_device(streams, self.device).bool()[:, None]
            visible = visible & (full | kept | (position >= self.seen - self._window))
        return visible

    def visible_of_window(self, start: Int[Tensor, "batch"] | None) -> Bool[Tensor, "batch 1 slot"] | None:
        """Which slots of streaming heads the newest token sees; None for all."""
        if not self.masks_always and self.seen - self._window >= self.longest_padding and self.seen > self.kept_leave:
            return None
        last = self.seen - 1
        slot = torch.arange(self._window, device=self.device)
        position = (last - (last - slot) % self._window).expand(len(self.kept), -1)
        begin = 0 if start is None else start[:, None]
        kept = (self.kept >= 0) & (self.kept <= last - self._window)
        return torch.cat([position >= begin, kept], 1)[:, None]

    @property
    def nbytes(self) -> int:
        """Bytes held, room that is not used yet included."""
        return sum(tensor.nbytes for tensor in (*self.whole, *self.window)) if self.is_initialized else 0

    def get_seq_length(self) -> int:
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        self.seen, self.is_initialized = 0, False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx.to(self.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.batch_select_indices(torch.arange(len(self.kept), device=self.device).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        self.whole, self.window = (KeyValues(*(tensor[indices] for tensor in own)) for own in (self.whole, self.window))
        self.kept = self.kept[indices]

    @property
    def _window(self) -> int:
        return 0 if self.plan.streaming is None else self.plan.streaming.window


def empty_key_values(like: KeyValues, n: int) -> KeyValues:
    """Empty keys and values of as many heads, for n positions."""
    return KeyValues(*(tensor.new_zeros(*tensor.shape[:2], n, tensor.shape[-1]) for tensor in like))
