"""Keys and values together, and the choice of some heads or positions of them without copies where that is possible."""

from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class KeysValues(NamedTuple):
    """Keys and values of the same heads and positions."""

    key: Float[Tensor, "batch kv_head position d"]
    value: Float[Tensor, "batch kv_head position d_v"]

    def of(self, kv_heads: tuple[int, ...]) -> "KeysValues":
        """Of some heads, by number."""
        return KeysValues(some(self.key, kv_heads), some(self.value, kv_heads))

    def since(self, first: int) -> "KeysValues":
        """From a position on."""
        return KeysValues(self.key[:, :, first:], self.value[:, :, first:])

    def at(self, position: Int[Tensor, "batch kept"]) -> "KeysValues":
        """At some positions of each sample; anything where the position is negative."""

        def taken(tensor: Tensor) -> Tensor:
            index = position.clamp(min=0)[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[-1])
            return tensor.gather(2, index)

        return KeysValues(taken(self.key), taken(self.value))

    def then(self, other: "KeysValues") -> "KeysValues":
        """These, and others after them."""
        return KeysValues(torch.cat([self.key, other.key], 2), torch.cat([self.value, other.value], 2))

    @property
    def n(self) -> int:
        """How many positions."""
        return self.key.shape[2]


def some(tensor: Float[Tensor, "batch head *rest"], heads: tuple[int, ...]) -> Float[Tensor, "batch chosen *rest"]:
    """Some heads of a tensor: a view of it if they stand side by side."""
    first = heads[0] if heads else 0
    if heads == tuple(range(first, first + len(heads))):
        return tensor[:, first : first + len(heads)]
    return tensor.index_select(1, on_device(heads, tensor.device))


@cache
def on_device(numbers: tuple[int, ...], device: torch.device) -> Int[Tensor, "head"]:
    """Numbers of heads, or of what is said of each, on a device, where they are brought once."""
    return torch.tensor(numbers, dtype=torch.long, device=device)
