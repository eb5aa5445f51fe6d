"""The one attention function, which every head of every layer passes through while somebody looks.

It computes what the model's own attention computes, lets hooks see and edit queries, keys, values and head outputs,
and recomputes exact attention rows in float32 for those who look at scores or patterns. Nothing S x S is made unless
the pattern is asked for without choosing queries, or the model itself picks keys query by query.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from corelens.hooks.rows import QueryRows

MASKED_LOGIT = torch.finfo(torch.float16).min / 2
"""Attention logits below this belong to keys that a query may not see."""


ROWS_PER_CHUNK = 256
"""Rows computed together where fused attention cannot compute what the model asks for."""


@dataclass(frozen=True)
class AttentionCall:
    """One call of the attention function: all that decides what the heads find."""

    module: nn.Module
    query: Float[Tensor, "batch head query d_qk"]
    key: Float[Tensor, "batch kv_head key d_qk"]
    value: Float[Tensor, "batch kv_head key d_head"]
    mask: Tensor | None
    scaling: float | None
    others: dict[str, Any] = field(default_factory=dict)
    """What else Hugging Face passes: soft caps, sinks, biases, chosen keys, boundaries, and much that says nothing."""

    def head_outputs(self) -> Float[Tensor, "batch query head d_head"]:
        """What every head finds, by fused attention wherever it can compute that."""
        if self.boundaries is not None:
            lengths = self.boundaries.diff().tolist()
            parts = zip(*(tensor.split(lengths, 2) for tensor in (self.query, self.key, self.value)), strict=True)
            return torch.cat([self._fused(*part) for part in parts], 1)
        if self.softcap is None and self.sinks is None:
            return self._fused(self.query, self.key, self.value)
        batch, _, n, _ = self.query.shape
        mixed = []
        for some in torch.arange(n, device=self.query.device).split(ROWS_PER_CHUNK):
            rows = QueryRows(some.expand(batch, -1), torch.ones(batch, len(some), dtype=torch.bool, device=some.device))
            mixed.append(weighted_values(self.pattern(self.scores(rows), rows), self.value))
        return torch.cat(mixed, 1).to(self.query).contiguous()

    def hide_keys(self, hidden: Bool[Tensor, "batch key"]) -> "AttentionCall":
        """The call in which no query sees some keys.

        Raises:
            ValueError: If a query has nothing left to look at, or several sequences are packed into one.
        """
        if self.boundaries is not None:
            raise ValueError("keys cannot be hidden in packed sequences.")
        visible, hidden = self._visible_keys(None), hidden.to(self.key.device)[:, None, None]
        left = visible.masked_fill(hidden, _masked_value(visible))
        if (alone := _is_visible(visible).any(-1) & ~_is_visible(left).any(-1)).any():
            raise ValueError(
                f"queries of sample {int(alone.nonzero()[0, 0])} would have nothing left to look at: leave some of the "
                f"keys that they may see."
            )
        return replace(self, mask=left)

    def scores(self, rows: "QueryRows | None" = None) -> Float[Tensor, "batch head row key"]:
        """Attention logits of all or some rows, in float32."""
        query = self.query if rows is None else rows.take(self.query)
        bias: Tensor | None = self.others.get("position_bias")
        if bias is not None and rows is not None:
            bias = rows.take(bias.expand(len(query), -1, -1, -1))
        return attention_scores(query, self.key, self.scaling, self._visible_keys(rows), self.softcap, bias)

    def pattern(self, scores: Float[Tensor, "batch head row key"], rows: "QueryRows | None" = None) -> Tensor:
        """Attention of logits; sinks take their share, so that rows of models with sinks sum to less than one."""
        if self.sinks is None:
            return scores.softmax(-1)
        sinks = self.sinks if rows is None or self.sinks.shape[2] == 1 else rows.take(self.sinks)
        sinks = sinks.float().expand(*scores.shape[:3], 1)
        return torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]

    @property
    def softcap(self) -> float | None:
        return self.others.get("softcap")

    @property
    def sinks(self) -> Float[Tensor, "#batch head #query 1"] | None:
        """Logits that compete with the keys and have no value: one per head, or one per query and head."""
        by_head: Tensor | None = self.others.get("s_aux")
        return self.others.get("sinks") if by_head is None else rearrange(by_head, "head -> 1 head 1 1")

    @property
    def boundaries(self) -> Int[Tensor, "part"] | None:
        """Where the parts of a packed sequence begin and end; attention stays within each."""
        return self.others.get("cu_seq_lens_q")

    @property
    def causal(self) -> bool:
        """Whether queries see no later keys where no mask is given: the rule of Hugging Face's fused attention."""
        said = self.others.get("is_causal")
        return getattr(self.module, "is_causal", True) if said is None else said

    @cached_property
    def full_mask(self) -> Tensor | None:
        """The mask, with keys that the model picked query by query taken into account."""
        indices, blocks = self.others.get("indices"), self.others.get("block_indices")
        if indices is not None:
            picked = torch.zeros(*indices.shape[:2], self.key.shape[2], dtype=torch.bool, device=indices.device)
            picked = picked.scatter_(-1, indices.long(), True)[:, None]
            if self.mask is None or self.mask.dtype == torch.bool:
                return picked if self.mask is None else self.mask & picked
            return self.mask.masked_fill(~picked, torch.finfo(self.mask.dtype).min)
        if blocks is not None:
            n_queries, n_keys = self.query.shape[2], self.key.shape[2]
            position = self.others.get("position_ids")
            if position is None:
                position = torch.arange(n_keys - n_queries, n_keys, device=self.key.device)[None]
            position = position.expand(len(self.query), -1)
            indexer: Any = self.module.indexer
            return indexer.build_block_mask(blocks, self.mask, n_keys, self.query.dtype, self.query.device, position)
        return self.mask

    def _fused(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return sdpa_attention_forward(
            self.module, query, key, value, self.full_mask, scaling=self.scaling, **self.others
        )[0]

    def _visible_keys(self, rows: "QueryRows | None") -> Tensor:
        """The mask of the wanted rows, made explicit where Hugging Face leaves it to the fused kernel."""
        if self.full_mask is not None:
            return self.full_mask if rows is None else rows.take(self.full_mask.expand(len(self.query), -1, -1, -1))
        n_queries, n_keys = self.query.shape[2], self.key.shape[2]
        column = torch.arange(n_keys, device=self.key.device)
        row = torch.arange(n_queries, device=self.key.device)[None] if rows is None else rows.position
        if self.boundaries is not None:
            part = torch.bucketize(column, self.boundaries, right=True)
            return (part[row][..., None] == part)[:, None]
        if not self.causal or n_queries == 1:
            return torch.ones_like(column, dtype=torch.bool)[None, None, None]
        return (column <= row[..., None])[:, None]


def _masked_value(mask: Tensor) -> float | int:
    """What a mask says of keys that are not seen."""
    return False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min


def _is_visible(mask: Tensor) -> Tensor:
    return mask if mask.dtype == torch.bool else mask > MASKED_LOGIT


def attention_scores(
    query: Float[Tensor, "batch head row d_qk"],
    key: Float[Tensor, "batch kv_head key d_qk"],
    scaling: float | None,
    visible: Shaped[Tensor, "#batch #head #row #key"],
    softcap: float | None = None,
    bias: Float[Tensor, "#batch #head #row #key"] | None = None,
) -> Float[Tensor, "batch head row key"]:
    """Attention logits in float32.

    Args:
        query: Queries as they meet the keys: normed and rotated.
        key: Keys, the cached ones included; groups of query heads share one.
        scaling: Factor on the products; None means one over the root of their width.
        visible: True where a query may look, or, as floats, what is added to the logits.
        softcap: Bound on the logits, which they approach as a hyperbolic tangent.
        bias: Added to the logits, by relative position and the like.

    Returns:
        The lowest finite float32 where a query may not look, so that rows that see nothing are even, as in eager
        attention.
    """
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    grouped = _group_query_heads(query, key.shape[1])
    scores = einsum(
        grouped, key.float(), "batch kv_head group row d_qk, batch kv_head key d_qk -> batch kv_head group row key"
    )
    scores = rearrange(scores, "batch kv_head group row key -> batch (kv_head group) row key") * factor
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    if bias is not None:
        scores = scores + bias.float()
    if visible.dtype == torch.bool:
        return scores.masked_fill_(~visible, torch.finfo(torch.float32).min)
    return scores + visible.float()


def weighted_values(
    pattern: Float[Tensor, "batch head row key"], value: Tensor
) -> Float[Tensor, "batch row head d_head"]:
    """Values mixed by attention, in float32."""
    mixed = einsum(
        _group_query_heads(pattern, value.shape[1]),
        value.float(),
        "batch kv_head group row key, batch kv_head key d_head -> batch row kv_head group d_head",
    )
    return rearrange(mixed, "batch row kv_head group d_head -> batch row (kv_head group) d_head")


def _group_query_heads(
    tensor: Float[Tensor, "batch head row last"], n_kv_heads: int
) -> Float[Tensor, "batch kv group row last"]:
    """Query heads by the key-value head that they share, in float32; keys and values are never repeated."""
    return rearrange(tensor.float(), "batch (kv group) row last -> batch kv group row last", kv=n_kv_heads)
