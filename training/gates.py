"""Gates on head outputs, to find and close the least important heads of a model."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class HeadGates:
    """A factor on every head's output, with the estimated change of the loss at zero as its importance."""

    def __init__(self, model: Any) -> None:
        config = model.config.text_config
        self.attention = [layer.self_attn for layer in model.model.language_model.layers]
        self.d_head = config.head_dim
        self.open = torch.ones(config.num_hidden_layers, config.num_attention_heads)
        self.importance = torch.zeros_like(self.open)

    @classmethod
    def of(cls, model: Any) -> "HeadGates":
        """Gates of a model in which `make_permanent` closed some heads: those without output weights."""
        gates = cls(model)
        for layer, attention in enumerate(gates.attention):
            gates.open[layer] = attention.o_proj.weight.unflatten(1, (-1, gates.d_head)).ne(0).any(-1).any(0)
        return gates

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Multiply head outputs by the gates inside the block; a backward pass of the loss adds to `importance`."""
        gates = self.open.clone().requires_grad_()
        gates.register_hook(lambda gradient: self.importance.add_(gradient**2))

        def scale(layer: int) -> Callable[..., Any]:
            return lambda module, args: (args[0] * gates[layer].repeat_interleave(self.d_head),)

        handles = [
            attention.o_proj.register_forward_pre_hook(scale(layer)) for layer, attention in enumerate(self.attention)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def state(self) -> dict[str, Tensor]:
        """Gates and importances, to save."""
        return {"gates": self.open, "importance": self.importance}

    def load(self, saved: dict[str, Tensor]) -> None:
        """Restore the tensors of `state`, if there are any."""
        self.open = saved.get("gates", self.open)
        self.importance = saved.get("importance", self.importance)

    def close_to(self, n: int) -> None:
        """Close the open heads of least importance until `n` are open, and reset the importances."""
        ranked = torch.where(self.open > 0, self.importance, math.inf).flatten().argsort()
        self.open.view(-1)[ranked[: max(0, int(self.open.sum()) - n)]] = 0
        self.importance.zero_()

    @torch.no_grad()
    def make_permanent(self) -> None:
        """Zero the query and output weights of closed heads: they attend uniformly, write nothing, and stay so."""
        for layer, attention in enumerate(self.attention):
            mask = self.open[layer].repeat_interleave(self.d_head)
            attention.q_proj.weight.mul_(mask[:, None])
            attention.o_proj.weight.mul_(mask[None, :])
