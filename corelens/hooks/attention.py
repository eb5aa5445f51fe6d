"""The arithmetic of attention, for every architecture: head outputs by fused attention, and exact rows of the pattern.

`AttentionCall` holds the arguments of one call of a Hugging Face attention function:

    query  [batch head query d_qk]
    key    [batch kv_head key d_qk]      ->  head_outputs()  [batch query head d_head]   fused, in the model's dtype
    value  [batch kv_head key d_head]    ->  scores(rows)    [batch head row key]        float32
    mask, scaling, soft cap, sinks …     ->  pattern(scores) [batch head row key]        float32

Nothing S x S is computed unless all rows are requested, or the model itself picks keys query by query. Architectures
differ only in extras (soft caps, sinks, biases, packed sequences, picked keys), and these are arguments of the call.
`corelens.hooks.taps` makes the calls and lets hooks edit them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, wraps
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from corelens.hooks.rows import QueryRows

MASKED_LOGIT = torch.finfo(torch.float16).min / 2
"""Attention logits below this belong to masked keys."""


ROWS_PER_CHUNK = 256
"""Rows computed at a time where fused attention lacks what the model needs."""


@dataclass(frozen=True)
class AttentionCall:
    """Arguments of one call of the attention function."""

    module: nn.Module
    query: Float[Tensor, "batch head query d_qk"]
    key: Float[Tensor, "batch kv_head key d_qk"]
    value: Float[Tensor, "batch kv_head key d_head"]
    mask: Tensor | None
    scaling: float | None
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Other arguments from Hugging Face: soft caps, sinks, biases, picked keys, boundaries, and many without effect."""

    even: Bool[Tensor, "batch query head"] | None = None
    """True where a head attends to every key alike, masked ones included; None for nowhere."""

    n_keys: int | None = None
    """Number of keys that exist, the first; None for all. A preallocated cache has empty ones after them."""

    def head_outputs(self) -> Float[Tensor, "batch query head d_head"]:
        """Output of every head, by fused attention wherever that has what the model needs."""
        outputs = self._attended()
        return outputs if self.even is None else torch.where(self.even[..., None], self._means().to(outputs), outputs)

    def _attended(self) -> Float[Tensor, "batch query head d_head"]:
        if self.boundaries is not None:
            lengths = self.boundaries.diff().tolist()
            parts = zip(*(tensor.split(lengths, 2) for tensor in (self.query, self.key, self.value)), strict=True)
            return torch.cat([self._fused(*part) for part in parts], 1)
        if self.softcap is None and self.sinks is None:
            return self._fused(self.query, self.key, self.value)
        batch, _, n, _ = self.query.shape
        outputs = []
        for chunk in torch.arange(n, device=self.query.device).split(ROWS_PER_CHUNK):
            real = torch.ones(batch, len(chunk), dtype=torch.bool, device=chunk.device)
            rows = QueryRows(chunk.expand(batch, -1), real)
            outputs.append(weighted_values(self.pattern(self.scores(rows), rows), self.value))
        return torch.cat(outputs, 1).to(self.query).contiguous()

    def _means(self) -> Float[Tensor, "batch #query head d_head"]:
        """Outputs of heads whose logits are zero for every key: the mean of all values, less the share of a sink."""
        value = self.value[:, :, : self.n_keys]
        sums = value.sum(2, dtype=torch.float32).repeat_interleave(self.query.shape[1] // value.shape[1], 1)
        if self.sinks is None:
            return sums[:, None] / value.shape[2]
        weights = rearrange(value.shape[2] + self.sinks.float().exp(), "batch head query 1 -> batch query head 1")
        return sums[:, None] / weights

    def with_zero_logits(self, where: Bool[Tensor, "batch query head"]) -> "AttentionCall":
        """Set logits to zero, before keys are masked: a head then attends to all visible keys alike."""
        where = rearrange(where, "batch query head -> batch head query 1")
        mask, bias = self.mask, self.kwargs.get("position_bias")
        if mask is not None and mask.dtype != torch.bool and (_is_visible(mask) & (mask != 0)).any():
            mask = torch.where(where & _is_visible(mask), 0, mask)
        kwargs = self.kwargs if bias is None else self.kwargs | {"position_bias": torch.where(where, 0, bias)}
        return replace(self, query=self.query.masked_fill(where, 0), mask=mask, kwargs=kwargs)

    def hide_keys(self, hidden: Bool[Tensor, "batch key"]) -> "AttentionCall":
        """Mask some keys for all queries.

        Raises:
            ValueError: If a query has no key left, or several sequences are packed into one.
        """
        if self.boundaries is not None:
            raise ValueError("keys cannot be masked in packed sequences.")
        visible, hidden = self._visible_keys(None), hidden.to(self.key.device)[:, None, None]
        mask = visible.masked_fill(hidden, _masked_value(visible))
        if (blind := _is_visible(visible).any(-1) & ~_is_visible(mask).any(-1)).any():
            raise ValueError(
                f"queries of sample {int(blind.nonzero()[0, 0])} would have no key left to attend to: leave some "
                f"of their keys."
            )
        return replace(self, mask=mask)

    def scores(self, rows: "QueryRows | None" = None) -> Float[Tensor, "batch head row key"]:
        """Attention logits in float32, of all rows or some."""
        query = self.query if rows is None else rows.take(self.query)
        bias: Tensor | None = self.kwargs.get("position_bias")
        if bias is not None and rows is not None:
            bias = rows.take(bias.expand(len(query), -1, -1, -1))
        scores = attention_scores(query, self.key, self.scaling, self._visible_keys(rows), self.softcap, bias)
        if self.even is None:
            return scores
        even = rearrange(self.even, "batch query head -> batch head query 1")
        even = even if rows is None else rows.take(even)
        scores[..., : self.n_keys].masked_fill_(even, 0)
        return scores

    def pattern(self, scores: Float[Tensor, "batch head row key"], rows: "QueryRows | None" = None) -> Tensor:
        """Softmax of the logits; rows of models with sinks sum to less than one, since the sink takes its share."""
        if self.sinks is None:
            return scores.softmax(-1)
        sinks = self.sinks if rows is None or self.sinks.shape[2] == 1 else rows.take(self.sinks)
        sinks = sinks.float().expand(*scores.shape[:3], 1)
        return torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]

    @property
    def softcap(self) -> float | None:
        return self.kwargs.get("softcap")

    @property
    def sinks(self) -> Float[Tensor, "#batch head #query 1"] | None:
        """Logits that compete with the keys and have no value: one per head, or one per query and head."""
        by_head: Tensor | None = self.kwargs.get("s_aux")
        return self.kwargs.get("sinks") if by_head is None else rearrange(by_head, "head -> 1 head 1 1")

    @property
    def boundaries(self) -> Int[Tensor, "part"] | None:
        """Boundaries between the parts of a packed sequence; attention stays within each part."""
        return self.kwargs.get("cu_seq_lens_q")

    @property
    def causal(self) -> bool:
        """True if later keys are masked where no mask is given, by the rule of Hugging Face's fused attention."""
        is_causal = self.kwargs.get("is_causal")
        return getattr(self.module, "is_causal", True) if is_causal is None else is_causal

    @cached_property
    def full_mask(self) -> Tensor | None:
        """The mask, without keys that the model did not pick for a query."""
        indices, blocks = self.kwargs.get("indices"), self.kwargs.get("block_indices")
        if indices is not None:
            picked = torch.zeros(*indices.shape[:2], self.key.shape[2], dtype=torch.bool, device=indices.device)
            picked = picked.scatter_(-1, indices.long(), True)[:, None]
            if self.mask is None or self.mask.dtype == torch.bool:
                return picked if self.mask is None else self.mask & picked
            return self.mask.masked_fill(~picked, torch.finfo(self.mask.dtype).min)
        if blocks is not None:
            n_queries, n_keys = self.query.shape[2], self.key.shape[2]
            position = self.kwargs.get("position_ids")
            if position is None:
                position = torch.arange(n_keys - n_queries, n_keys, device=self.key.device)[None]
            position = position.expand(len(self.query), -1)
            indexer: Any = self.module.indexer
            return indexer.build_block_mask(blocks, self.mask, n_keys, self.query.dtype, self.query.device, position)
        return self.mask

    def _fused(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return sdpa_attention_forward(
            self.module, query, key, value, self.full_mask, scaling=self.scaling, **self.kwargs
        )[0]

    def _visible_keys(self, rows: "QueryRows | None") -> Tensor:
        """The mask of some rows, made explicit where Hugging Face leaves it to the fused kernel."""
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
    """Value of masked keys in a mask: False, or the lowest number."""
    return False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min


def _is_visible(mask: Tensor) -> Tensor:
    return mask if mask.dtype == torch.bool else mask > MASKED_LOGIT


def in_float32(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of tensors that computes in float32 also under autocast, which would take the products in bfloat16."""

    @wraps(function)
    def computed(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(tensor.device.type, enabled=False):
            return function(tensor, *args, **kwargs)

    return computed


@in_float32
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
        visible: True where a query attends to a key; as floats, added to the logits.
        softcap: Bound on the logits, which they approach as a hyperbolic tangent.
        bias: Added to the logits, by relative position and the like.

    Returns:
        Masked keys have the lowest finite float32, so that rows in which all keys are masked are even, as in eager
        attention.
    """
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = einsum(
        _group_query_heads(query, key.shape[1]),
        key.float(),
        "batch kv_head group row d_qk, batch kv_head key d_qk -> batch kv_head group row key",
    )
    scores = rearrange(scores, "batch kv_head group row key -> batch (kv_head group) row key") * factor
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    if bias is not None:
        scores = scores + bias.float()
    if visible.dtype == torch.bool:
        return scores.masked_fill_(~visible, torch.finfo(torch.float32).min)
    return scores + visible.float()


@in_float32
def weighted_values(
    pattern: Float[Tensor, "batch head row key"], value: Tensor
) -> Float[Tensor, "batch row head d_head"]:
    """Values weighted by attention, in float32."""
    outputs = einsum(
        _group_query_heads(pattern, value.shape[1]),
        value.float(),
        "batch kv_head group row key, batch kv_head key d_head -> batch row kv_head group d_head",
    )
    return rearrange(outputs, "batch row kv_head group d_head -> batch row (kv_head group) d_head")


def _group_query_heads(
    tensor: Float[Tensor, "batch head row last"], n_kv_heads: int
) -> Float[Tensor, "batch kv group row last"]:
    """Group query heads by the key-value head that they share, in float32; keys and values are never repeated."""
    return rearrange(tensor.float(), "batch (kv group) row last -> batch kv group row last", kv=n_kv_heads)
