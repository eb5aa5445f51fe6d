"""A plan on a model: what its layers keep, and what that costs."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from corelens.heads import Head
from corelens.hf.architecture import AttentionModule, decoder_layers
from corelens.sparse.cache import plannable
from corelens.sparse.cost_model import Shares
from corelens.sparse.plan import Full, HeadPlan, HeadRule, LayerPlan, Streaming, TopBlocks


@dataclass(frozen=True)
class ResolvedPlan:
    """A plan on a model.

    Layers that see a window only, or that are not made of softmax attention, follow no plan and do not count.
    """

    layers: Mapping[int, LayerPlan]
    """Of the layers that follow the plan, by number."""

    modules: Mapping[int, nn.Module]
    """Their attention modules."""

    bytes_per_position: Mapping[int, int]
    """Of one head of keys and values in each of them."""

    @property
    def share_of_full_heads(self) -> float:
        """Share of the query heads that attend to everything, in [0, 1]."""
        rules = [rule for layer in self.layers.values() for rule in layer.rules]
        return sum(isinstance(rule, Full) for rule in rules) / len(rules)

    @property
    def share_of_whole_groups(self) -> float:
        """Share of the heads of keys that are kept for all positions, in [0, 1]."""
        layers = self.layers.values()
        return sum(len(layer.whole) for layer in layers) / sum(layer.n_kv_heads for layer in layers)

    @property
    def shares(self) -> Shares:
        """What the cost model needs to know of the plan: at most what it costs.

        Heads of top blocks count as full, since prompts decide what they read, and where layers keep windows of
        different lengths, the longest counts.
        """
        rules = [rule for layer in self.layers.values() for rule in layer.rules]
        dense = sum(isinstance(rule, Full | TopBlocks) for rule in rules) / len(rules)
        streaming = [(rule.sink, rule.window) for rule in rules if isinstance(rule, Streaming)]
        return Shares(dense, self.share_of_whole_groups, *max(streaming, key=sum, default=(0, 1)))

    def bytes(self, length: int) -> int:
        """Bytes of keys and values of one sequence of a length in positions, kept text not counted."""
        total = 0
        for number, plan in self.layers.items():
            rule = plan.streaming or Streaming(0, 1)
            window = rule.window + min(rule.sink, length)
            total += self.bytes_per_position[number] * (len(plan.whole) * length + len(plan.window) * window)
        return total

    def full_cache_bytes(self, length: int) -> int:
        """The same without a plan."""
        return sum(self.bytes_per_position[number] * plan.n_kv_heads * length for number, plan in self.layers.items())

    def summary(self, length: int) -> str:
        """The plan in numbers, for sequences of a length in positions."""
        kept, stock = self.bytes(length), self.full_cache_bytes(length)
        return (
            f"{self.share_of_full_heads:.1%} of query heads attend to everything, {self.share_of_whole_groups:.1%} of "
            f"key heads are kept whole; at {length:,} positions a sequence holds {kept / 1e6:.1f} MB of "
            f"{stock / 1e6:.1f} MB ({kept / stock:.1%})"
        )


def resolve(plan: HeadPlan, hf_model: PreTrainedModel) -> ResolvedPlan:
    """What a plan means for a model.

    Raises:
        ValueError: If the plan names a head that does not exist, or one that cannot follow a rule; or if no layer of
            the model can.
    """
    name = type(hf_model).__name__
    layers = decoder_layers(hf_model)
    if hf_model.config.is_encoder_decoder or any(
        s.is_cross_attention for layer in layers for s in layer.attentions.values()
    ):
        raise ValueError(f"{name} attends to an encoder, and plans are for decoders that attend to themselves alone.")
    able = set(plannable(hf_model.config))
    sites = {site.layer: site.attentions["attn"] for site in layers if "attn" in site.attentions}
    planned = {layer: site for layer, site in sites.items() if layer in able}
    if not planned:
        raise ValueError(f"no layer of {name} keeps keys and values of all positions of its own: nothing to plan.")
    for head, rule in plan.rules.items():
        _check(head, rule, sites, planned)
    return ResolvedPlan(
        {layer: plan.layer(layer, site.n_heads, site.n_kv_heads) for layer, site in planned.items()},
        {layer: site.module for layer, site in planned.items()},
        {layer: _bytes_per_position(site, hf_model.dtype) for layer, site in planned.items()},
    )


def _check(
    head: Head, rule: HeadRule, sites: Mapping[int, AttentionModule], planned: Mapping[int, AttentionModule]
) -> None:
    if head.layer not in sites or not 0 <= head.head < sites[head.layer].n_heads:
        raise ValueError(f"the plan names {head}, and the model has no such head.")
    if head.layer not in planned and not isinstance(rule, Full):
        raise ValueError(
            f"{head} cannot be {type(rule).__name__.lower()}: layer {head.layer} sees a window only, shares keys with "
            f"another layer or keeps a state, so its heads follow no plan."
        )


def _bytes_per_position(site: AttentionModule, dtype: torch.dtype) -> int:
    # Where keys are compressed, they are wider than what heads write.
    d_qk = getattr(site.module, "qk_head_dim", site.d_head)
    return (d_qk + site.d_head) * dtype.itemsize
