"""Weights by TransformerLens's names, `blocks.0.attn.W_Q`, each read when it is looked up."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from corelens.hooks.sublayers import HookedMLP, HookedNorm
from corelens.hooks.weights import AttentionWeights

BY_KEY_HEAD = ("W_K", "W_V", "b_K", "b_V")
ATTENTION = ("W_Q", "W_O", "b_Q", "b_O", *BY_KEY_HEAD)
NEURONS = ("W_in", "W_out", "b_in", "b_out")


class NamedWeights(Mapping[str, Tensor]):
    """Weights by name, each read when it is looked up."""

    def __init__(self, readers: dict[str, Callable[[], Tensor]]) -> None:
        self._readers = readers

    def __getitem__(self, name: str) -> Tensor:
        return self._readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


def block_weights(block: nn.Module) -> dict[str, Callable[[], Tensor]]:
    """Functions that read the weights of a layer, those that it has, by name.

    Keys and values are repeated for the query heads that share them, as TransformerLens has them.
    """
    weights: dict[str, Callable[[], Tensor]] = {}
    for name, part in block.named_children():
        match part:
            case HookedNorm():
                own = norm_weights_of(part)
            case HookedMLP():
                own = {weight: partial(getattr, part, weight) for weight in NEURONS}
                own |= {"W_gate": lambda mlp=part: mlp.W_gate} if part.hf_mlp.w_gate else {}
            case AttentionWeights() if part.hf_attention.head_rows and not part.hf_attention.is_cross_attention:
                own = {weight: partial(_by_query_head, part, weight) for weight in ATTENTION}
            case _:
                continue
        weights |= {f"{name}.{weight}": read for weight, read in own.items()}
    return weights


def norm_weights_of(norm: HookedNorm) -> dict[str, Callable[[], Tensor]]:
    """Functions that read the gain `w` and the bias `b` of a norm."""
    return {"w": lambda: norm.w, "b": lambda: norm.b}


def _by_query_head(attention: AttentionWeights, weight: str) -> Any:
    value: Tensor = getattr(attention, weight)
    return attention.by_query_head(value) if weight in BY_KEY_HEAD else value
