"""Interventions on attention edges: how much some heads attend from some queries to some keys."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from corelens.heads import Head, HeadSet
from corelens.hooks.attention import MASKED_LOGIT
from corelens.hooks.points import hook_name
from corelens.hooks.positions import PassState, Phase, Positions, PositionSelector, repeat_per_row
from corelens.interventions.replace import FwdHooks


def attention_knockout(
    heads: Iterable[Head], queries: Positions | None, keys: Positions, *, phase: Phase = "both"
) -> FwdHooks:
    """Cut the attention of heads from some queries to some keys; their other keys share it.

    Only the rows of the chosen queries are computed; nothing S x S exists unless `queries` is None.

    Args:
        heads: The heads.
        queries: Positions of the prompt that may not attend to the keys, by name (`question`, `last`) or as a mask
            such as a token map's; None for all.
        keys: Positions of the prompt that they may not attend to: a region, or all of `image`.
        phase: Act on queries of the prompt (`prefill`), generated ones (`decode`) or both.

    Returns:
        One hook per layer. A query that has no key left to attend to raises a ValueError in the pass.
    """
    return bias_attention(heads, queries, keys, -math.inf, phase=phase)


def mask_keys(layers: Iterable[int], keys: Positions) -> FwdHooks:
    """Mask some keys for all heads of some layers, at every query, as if these tokens were dropped there.

    The same numbers as `attention_knockout` of all heads for all queries, by fused attention under a mask that heads
    share.

    Args:
        layers: The layers.
        keys: Positions of the prompt that no query may attend to.

    Returns:
        One hook per layer. A query that has no key left to attend to raises a ValueError in the pass.
    """
    return [(hook_name(layer, "attn.k"), MaskKeys(layer, keys)) for layer in sorted(set(layers))]


def scale_attention(
    heads: Iterable[Head], queries: Positions | None, keys: Positions, factor: float | int, *, phase: Phase = "both"
) -> FwdHooks:
    """Multiply the attention of heads from some queries to some keys; rows still sum to one.

    Args:
        heads: The heads.
        queries: As for `attention_knockout`.
        keys: As for `attention_knockout`.
        factor: Zero is a knockout, one changes nothing.
        phase: As for `attention_knockout`.

    Raises:
        ValueError: If the factor is negative or not finite.
    """
    if not 0 <= factor < math.inf:
        raise ValueError(
            f"factor={factor} is no finite number from 0 up: 0 is a knockout, 1 changes nothing. For attention to "
            f"these keys alone, knock out the others."
        )
    return bias_attention(heads, queries, keys, math.log(factor) if factor else -math.inf, phase=phase)


def bias_attention(
    heads: Iterable[Head], queries: Positions | None, keys: Positions, bias: float | int, *, phase: Phase = "both"
) -> FwdHooks:
    """Add a number to the attention logits of heads from some queries to some keys.

    Args:
        heads: The heads.
        queries: As for `attention_knockout`.
        keys: As for `attention_knockout`.
        bias: Positive numbers draw attention to the keys, negative ones keep it away.
        phase: As for `attention_knockout`.

    Raises:
        ValueError: If the bias is NaN, or infinite and positive.
    """
    if not bias < torch.finfo(torch.float32).max:
        raise ValueError(f"bias={bias} is no finite number: attention would be NaN. -inf is a knockout.")
    where = PositionSelector(queries, phase)
    hooks: FwdHooks = []
    for layer, numbers in HeadSet(tuple(heads)).by_layer().items():
        layer_heads = tuple(Head(layer, number) for number in numbers)
        hooks.append((hook_name(layer, "attn.attn_scores"), AttentionBias(layer_heads, where, keys, float(bias))))
    return hooks


def cut_route(heads: Iterable[Head], queries: Positions | None, keys: Positions, *, phase: Phase = "both") -> FwdHooks:
    """Take out of what heads write at some queries what they read from some keys.

    Attention to these keys becomes zero after the softmax, and that to the other keys stays as it is: what the head
    reads from them is left alone, and its rows sum to less than one. `attention_knockout` acts before the softmax, and
    gives their share to the other keys.

    Args:
        heads: The heads.
        queries: As for `attention_knockout`.
        keys: As for `attention_knockout`.
        phase: As for `attention_knockout`.

    Source:
        corelens's own; it removes the terms by which `ov_by_route` divides a head's output.
    """
    where = PositionSelector(queries, phase)
    return [
        (
            hook_name(layer, "attn.pattern"),
            RouteCut(tuple(Head(layer, number) for number in numbers), where, keys),
        )
        for layer, numbers in HeadSet(tuple(heads)).by_layer().items()
    ]


@dataclass(frozen=True, eq=False)
class _Edges:
    """Edges from some queries of one layer's heads to some keys, on which a hook acts."""

    heads: tuple[Head, ...]
    where: PositionSelector
    keys: Positions = field(repr=False)

    @property
    def numbers(self) -> list[int]:
        """Numbers of the heads in their layer."""
        return [number for _, number in self.heads]

    def check(self, state: PassState) -> None:
        """Raise a ValueError if a pass in this state cannot act at these queries, or does not have these keys."""
        self.where.check(state)
        state.check_keys(self.heads[0].layer)
        state.mask(self.keys, "keys")

    def chosen_keys(self, state: PassState, rows: Float[Tensor, "batch head row key"]) -> Bool[Tensor, "batch 1 1 key"]:
        """Mask of the keys of some rows; generated keys are never chosen."""
        mask = repeat_per_row(state.mask(self.keys, "keys"), rows)
        return pad(mask, (0, rows.shape[-1] - mask.shape[-1]))[:, None, None]


@dataclass(frozen=True, eq=False)
class RouteCut(_Edges):
    """Sets attention to some keys to zero behind the softmax; a hook for patterns."""

    def __call__(self, pattern: Float[Tensor, "batch head row key"], hook: Any) -> Tensor:
        keys = self.chosen_keys(hook.ctx["state"], pattern)
        cut = pattern.clone()
        cut[:, self.numbers] = pattern[:, self.numbers].masked_fill(keys, 0)
        return cut


@dataclass(frozen=True, eq=False)
class AttentionBias(_Edges):
    """Adds a number to attention logits toward some keys; a hook for them."""

    bias: float

    def __call__(self, scores: Float[Tensor, "batch head row key"], hook: Any) -> Tensor:
        keys = self.chosen_keys(hook.ctx["state"], scores)
        old = scores[:, self.numbers]
        new = torch.where(keys & (old > MASKED_LOGIT), old + self.bias, old)
        without_keys = (old > MASKED_LOGIT).any(-1) & ~(new > MASKED_LOGIT).any(-1)
        if without_keys.any():
            sample, head = without_keys.any(-1).nonzero()[0].tolist()
            raise ValueError(
                f"{self.heads[head]} would have no key left to attend to in sample {sample}: leave some of the keys "
                f"that its queries may attend to."
            )
        scores = scores.clone()
        scores[:, self.numbers] = new
        return scores


@dataclass(frozen=True, eq=False)
class MaskKeys:
    """Marks keys of a layer as hidden from all queries; a hook for keys that leaves their values as they are."""

    layer: int
    keys: Positions = field(repr=False)
    heads: tuple[Head, ...] = ()

    def check(self, state: PassState) -> None:
        """Raise a ValueError if a pass in this state has cached positions, or does not have these keys."""
        PositionSelector().check(state)
        state.check_keys(self.layer)
        state.mask(self.keys, "keys")

    def __call__(self, key: Float[Tensor, "batch key kv_head d_head"], hook: Any) -> None:
        state: PassState = hook.ctx["state"]
        selector = PositionSelector(self.keys, "prefill")
        mask = repeat_per_row(selector.select(state, state.positions(key.shape[1])), key)
        # Several hooks of one layer add up.
        hidden = hook.ctx.get("hidden")
        hook.ctx["hidden"] = mask if hidden is None else hidden | mask
