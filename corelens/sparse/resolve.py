"""A head plan resolved on a model: the plan of each layer, and the bytes that its cache takes."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from corelens.hf.architecture import decoder_layers
from corelens.hf.layers import AttentionModule
from corelens.hooks.points import check_heads
from corelens.sparse.cache import plannable_layers
from corelens.sparse.cost_model import Shares
from corelens.sparse.plan import HeadPlan, LayerPlan
from corelens.sparse.rules import Full, Off, Streaming, StreamingBlocks, TopBlocks


@dataclass(frozen=True, repr=False)
class ResolvedPlan:
    """A plan resolved on a model.

    Layers with sliding-window attention, or without softmax attention, follow no plan and do not count.
    """

    layers: Mapping[int, LayerPlan]
    """Plans of the layers that follow the plan, by layer number."""

    modules: Mapping[int, nn.Module]
    """Attention modules of these layers."""

    bytes_per_position: Mapping[int, int]
    """Bytes that one KV head stores for a position, by layer."""

    @property
    def share_of_full_heads(self) -> float:
        """Share of the query heads that attend to everything, in [0, 1]."""
        rules = [rule for layer in self.layers.values() for rule in layer.rules]
        return sum(isinstance(rule, Full) for rule in rules) / len(rules)

    @property
    def share_of_full_kv_heads(self) -> float:
        """Share of the KV heads that are stored for all positions, in [0, 1]."""
        layers = self.layers.values()
        return sum(len(layer.full_kv_heads) for layer in layers) / sum(layer.n_kv_heads for layer in layers)

    @property
    def shares(self) -> Shares:
        """Upper bounds of the plan's cost, for the cost model.

        Heads of top blocks count as full, since prompts decide what they read, and where layers keep windows of
        different lengths, the longest counts.
        """
        rules = [rule for layer in self.layers.values() for rule in layer.rules]
        dense = sum(isinstance(rule, Full | TopBlocks) for rule in rules) / len(rules)
        longest = max(self._streaming, key=lambda rule: rule.sink + rule.window, default=Streaming(0, 1))
        return Shares(dense, self.share_of_full_kv_heads, longest.sink, longest.window)

    @property
    def _streaming(self) -> list[Streaming]:
        """Rules of the streaming heads, in tokens."""
        rules = {rule for layer in self.layers.values() for rule in layer.rules}
        in_tokens = [rule.in_tokens if isinstance(rule, StreamingBlocks) else rule for rule in rules]
        return [rule for rule in in_tokens if isinstance(rule, Streaming)]

    def is_full(self, length: int) -> bool:
        """True if all heads attend to everything in a prompt of `length` positions, so that the plan changes nothing.

        Heads of top blocks do not count as such, since prompts decide what they read.
        """
        rules = {rule for layer in self.layers.values() for rule in layer.rules}
        streaming_is_full = all(rule.sink + rule.window >= length for rule in self._streaming)
        return streaming_is_full and not any(isinstance(rule, TopBlocks | Off) for rule in rules)

    def bytes(self, length: int) -> int:
        """Return the bytes of keys and values of one sequence of `length` positions, retained text not counted."""
        total = 0
        for layer, plan in self.layers.items():
            rule = plan.streaming or Streaming(0, 1)
            slots = rule.window + min(rule.sink, length)
            n_entries = len(plan.full_kv_heads) * length + len(plan.window_kv_heads) * slots
            total += self.bytes_per_position[layer] * n_entries
        return total

    def full_cache_bytes(self, length: int) -> int:
        """Return the bytes of the same sequence without a plan."""
        return sum(self.bytes_per_position[layer] * plan.n_kv_heads * length for layer, plan in self.layers.items())

    def share_of_cache(self, length: int) -> float:
        """Share of the dense cache's bytes that is stored of a sequence of `length` positions.

        It is above 1 where windows, which take their room from the beginning, are longer than the sequence.
        """
        return self.bytes(length) / self.full_cache_bytes(length)

    def summary(self, length: int) -> str:
        """Describe the plan in numbers, for sequences of `length` positions."""
        planned, full = self.bytes(length) / 1e6, self.full_cache_bytes(length) / 1e6
        summary = (
            f"{self}; at {length:,} positions a sequence holds {planned:.1f} MB of {full:.1f} MB "
            f"({self.share_of_cache(length):.1%})"
        )
        return f"{summary}, and all heads attend to everything" if self.is_full(length) else summary

    def __str__(self) -> str:
        return (
            f"{self.share_of_full_heads:.1%} of query heads attend to everything, {self.share_of_full_kv_heads:.1%} of "
            f"KV heads store all positions"
        )

    def __repr__(self) -> str:
        return f"<ResolvedPlan of {len(self.layers)} layers: {self}>"


def resolve(plan: HeadPlan, hf_model: PreTrainedModel) -> ResolvedPlan:
    """Return the plan of each layer of a model.

    Raises:
        ValueError: If the plan names a head that does not exist, or one that cannot follow a rule; or if no layer of
            the model can.
    """
    name = type(hf_model).__name__
    layers = decoder_layers(hf_model)
    if hf_model.config.is_encoder_decoder or any(
        module.is_cross_attention for layer in layers for module in layer.attentions.values()
    ):
        raise ValueError(f"{name} attends to an encoder, and plans are for decoders that attend to themselves alone.")
    plannable = set(plannable_layers(hf_model.config))
    planned = {
        layer.layer: layer.attentions["attn"]
        for layer in layers
        if "attn" in layer.attentions and layer.layer in plannable
    }
    if not planned:
        raise ValueError(f"no layer of {name} keeps keys and values of all positions of its own: nothing to plan.")
    check_heads(plan.rules, layers)
    for head, rule in plan.rules.items():
        if head.layer not in planned and not isinstance(rule, Full):
            raise ValueError(
                f"{head} cannot be {type(rule).__name__.lower()}: layer {head.layer} attends to a window only, shares "
                f"keys with another layer or keeps a state, so its heads follow no plan."
            )
    return ResolvedPlan(
        {layer: plan.layer(layer, module.n_heads, module.n_kv_heads) for layer, module in planned.items()},
        {layer: module.module for layer, module in planned.items()},
        {layer: _bytes_per_position(module, hf_model.dtype) for layer, module in planned.items()},
    )


def _bytes_per_position(attention: AttentionModule, dtype: torch.dtype) -> int:
    # Compressed keys are wider than head outputs.
    d_qk = getattr(attention.module, "qk_head_dim", attention.d_head)
    return (d_qk + attention.d_head) * dtype.itemsize
