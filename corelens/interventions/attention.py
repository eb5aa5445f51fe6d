"""Interventions on edges: what some heads may take from some keys at some queries."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from corelens.heads import Head
from corelens.hooks.attention import MASKED_LOGIT
from corelens.hooks.positions import PassState, Phase, Positions, PositionSelector, repeat_per_row
from corelens.interventions.replace import FwdHooks, by_layer


def attention_knockout(
    heads: Iterable[Head], queries: Positions | None, keys: Positions, *, phase: Phase = "both"
) -> FwdHooks:
    """Keeps heads from looking from some queries to some keys; their other keys share the attention.

    Only the rows of the chosen queries are computed; nothing S x S exists unless `queries` is None.

    Args:
        heads: Which heads.
        queries: Positions of the prompt that may not look, by name (`question`, `last`) or as a mask such as a token
            map's; None for all.
        keys: Positions of the prompt that they may not look at: a region, or all of `image`.
        phase: Whether it holds for queries of the prompt (`prefill`), generated ones (`decode`) or both.

    Returns:
        One hook per layer. A query that has nothing left to look at raises a ValueError in the pass.
    """
    return bias_attention(heads, queries, keys, -math.inf, phase=phase)


def mask_keys(layers: Iterable[int], keys: Positions) -> FwdHooks:
    """Keeps all heads of some layers from looking at some keys, at every query, as if these tokens were dropped there.

    The same numbers as `attention_knockout` of all heads for all queries, by fused attention under a mask that heads share.

    Args:
        layers: Which layers.
        keys: Positions of the prompt that nobody may look at.

    Returns:
        One hook per layer. A query that has nothing left to look at raises a ValueError in the pass.
    """
    return [(f"blocks.{layer}.attn.hook_k", MaskKeys(layer, keys)) for layer in sorted(set(layers))]


def scale_attention(
    heads: Iterable[Head], queries: Positions | None, keys: Positions, factor: float | int, *, phase: Phase = "both"
) -> FwdHooks:
    """Multiplies the attention of heads from some queries to some keys, then lets rows sum to one again.

    Args:
        heads: Which heads.
        queries: As for `attention_knockout`.
        keys: As for `attention_knockout`.
        factor: Zero knocks out, one changes nothing.
        phase: As for `attention_knockout`.

    Raises:
        ValueError: If the factor is negative.
    """
    if not factor >= 0:
        raise ValueError(f"factor={factor} is negative: attention cannot be. 0 knocks out, 1 changes nothing.")
    return bias_attention(heads, queries, keys, math.log(factor) if factor else -math.inf, phase=phase)


def bias_attention(
    heads: Iterable[Head], queries: Positions | None, keys: Positions, bias: float | int, *, phase: Phase = "both"
) -> FwdHooks:
    """Adds a number to the attention logits of heads from some queries to some keys.

    Args:
        heads: Which heads.
        queries: As for `attention_knockout`.
        keys: As for `attention_knockout`.
        bias: Positive draws attention there, negative keeps it away.
        phase: As for `attention_knockout`.
    """
    where = PositionSelector(queries, phase)
    return [
        (f"blocks.{layer}.attn.hook_attn_scores", AttentionBias(chosen, where, keys, float(bias)))
        for layer, chosen in by_layer(heads).items()
    ]


@dataclass(frozen=True, eq=False)
class AttentionBias:
    """Adds a number to attention logits toward some keys; a hook for them."""

    heads: tuple[Head, ...]
    where: PositionSelector
    keys: Positions = field(repr=False)
    bias: float

    def check(self, progress: PassState) -> None:
        self.where.check(progress)
        progress.check_keys(self.heads[0].layer)
        progress.mask(self.keys, "keys")

    def __call__(self, scores: Float[Tensor, "batch head row key"], hook: Any) -> Tensor:
        progress: PassState = hook.ctx["progress"]
        keys = repeat_per_row(progress.mask(self.keys, "keys"), scores)
        # Generated keys are never meant.
        keys = pad(keys, (0, scores.shape[-1] - keys.shape[-1]))[:, None, None]
        numbers = [number for _, number in self.heads]
        old = scores[:, numbers]
        new = torch.where(keys & (old > MASKED_LOGIT), old + self.bias, old)
        if (alone := (old > MASKED_LOGIT).any(-1) & ~(new > MASKED_LOGIT).any(-1)).any():
            sample, head = alone.any(-1).nonzero()[0].tolist()
            raise ValueError(
                f"{self.heads[head]} would have nothing left to look at in sample {sample}: leave some of the keys "
                f"that its queries may see."
            )
        scores = scores.clone()
        scores[:, numbers] = new
        return scores


@dataclass(frozen=True, eq=False)
class MaskKeys:
    """Says of a layer's keys which nobody sees; a hook for them that leaves them as they are."""

    layer: int
    keys: Positions = field(repr=False)
    heads: tuple[Head, ...] = ()

    def check(self, progress: PassState) -> None:
        PositionSelector().check(progress)
        progress.check_keys(self.layer)
        progress.mask(self.keys, "keys")

    def __call__(self, key: Float[Tensor, "batch key kv_head d_head"], hook: Any) -> None:
        progress: PassState = hook.ctx["progress"]
        hidden = repeat_per_row(
            PositionSelector(self.keys, "prefill").select(progress, progress.positions(key.shape[1])), key
        )
        before = hook.ctx.get("hidden")
        hook.ctx["hidden"] = hidden if before is None else before | hidden
