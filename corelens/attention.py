"""The one attention function, which every head of every layer passes through while somebody looks.

It computes what the model's own attention computes, lets hooks see and edit queries, keys, values and head outputs,
and recomputes exact attention rows in float32 for those who look at scores or patterns. Nothing S x S is made unless
the pattern is asked for without choosing queries, or the model itself picks keys query by query.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn.functional import pad
from transformer_lens.hook_points import HookPoint, LensHandle
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from corelens.heads import Head
from corelens.passes import Progress, Where, per_row
from corelens.refusals import see

NAME = "corelens"
"""What Hugging Face knows the function and its mask as."""

PACKED = "corelens_flash"
"""The same function for vision towers that pack pictures or windows into one sequence: they hand the whole sequence
and its boundaries only to functions whose name holds "flash", and call all others once for every part."""

SPARSE = "corelens_sparse"
"""The function that heads go through while they follow a plan; see `corelens.sparse`."""

HIDDEN = torch.finfo(torch.float16).min / 2
"""Attention logits below this belong to keys that a query may not see."""

ROWS_AT_ONCE = 256
"""Rows computed together where fused attention cannot compute what the model asks for."""


def chosen_rows(queries: Bool[Tensor, "batch position"]) -> Bool[Tensor, "batch query"]:
    """Which rows of a pattern limited by `queries` are real.

    A pattern limited to chosen queries has as many rows as the sample with most of them; row r of a sample is its r-th
    chosen query. Samples with fewer have NaN in their last rows, where this mask is False.

    Examples:
        >>> chosen_rows(torch.tensor([[True, False, True], [False, False, True]]))
        tensor([[ True,  True],
                [ True, False]])
    """
    counts = queries.sum(-1, keepdim=True)
    return torch.arange(int(counts.max()), device=queries.device) < counts


@dataclass
class Rows:
    """The query positions, within one call, whose attention rows are wanted."""

    position: Int[Tensor, "batch query"]
    """Zero where `real` is False."""

    real: Bool[Tensor, "batch query"]

    @classmethod
    def of(cls, queries: Bool[Tensor, "batch position"]) -> "Rows":
        real = chosen_rows(queries)
        # Chosen positions come first in a stable sort, in their own order.
        order = queries.logical_not().to(torch.uint8).argsort(dim=-1, stable=True)[:, : real.shape[1]]
        return cls(torch.where(real, order, 0), real)

    def take(self, tensor: Shaped[Tensor, "batch head query last"]) -> Shaped[Tensor, "batch head row last"]:
        """The chosen rows; padding rows repeat the first."""
        batch = torch.arange(len(tensor), device=tensor.device)[:, None]
        return tensor.transpose(1, 2)[batch, self.position].transpose(1, 2)

    def put(
        self, tensor: Shaped[Tensor, "batch query *rest"], rows: Shaped[Tensor, "batch row *rest"]
    ) -> Shaped[Tensor, "batch query *rest"]:
        """The tensor with other rows in the chosen places."""
        batch = torch.arange(len(tensor), device=tensor.device)[:, None].expand_as(self.position)
        return tensor.index_put((batch[self.real], self.position[self.real]), rows[self.real])


@dataclass(frozen=True, eq=False)
class AtRows:
    """A hook function on scores or patterns that is shown the rows it asked for, whatever rows others ask for."""

    function: Callable[..., Any]
    where: Where

    @property
    def heads(self) -> Iterable[Head]:
        """What the function acts on."""
        return getattr(self.function, "heads", ())

    def __call__(self, tensor: Float[Tensor, "batch head row key"], hook: Any) -> Tensor | None:
        shown: Rows | None = hook.ctx.get("rows")
        if shown is None:
            return self.function(tensor, hook=hook)
        wanted = per_row(self.where.select(hook.ctx["progress"], hook.ctx["queries"]), tensor)
        mine = wanted.gather(1, shown.position) & shown.real
        if torch.equal(mine, shown.real):
            return self.function(tensor, hook=hook)
        if not mine.any():
            return None
        rows = Rows.of(mine)
        own = rows.take(tensor).masked_fill(~rows.real[:, None, :, None], torch.nan)
        seen, edited = _watched(lambda own: self.function(own, hook=hook), own)
        return rows.put(tensor.transpose(1, 2), seen.transpose(1, 2)).transpose(1, 2) if edited else None


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

    def heads_outputs(self) -> Float[Tensor, "batch query head d_head"]:
        """What every head finds, by fused attention wherever it can compute that."""
        if self.boundaries is not None:
            lengths = self.boundaries.diff().tolist()
            parts = zip(*(tensor.split(lengths, 2) for tensor in (self.query, self.key, self.value)), strict=True)
            return torch.cat([self._fused(*part) for part in parts], 1)
        if self.softcap is None and self.sinks is None:
            return self._fused(self.query, self.key, self.value)
        batch, _, n, _ = self.query.shape
        mixed = []
        for some in torch.arange(n, device=self.query.device).split(ROWS_AT_ONCE):
            rows = Rows(some.expand(batch, -1), torch.ones(batch, len(some), dtype=torch.bool, device=some.device))
            mixed.append(_mix(self.pattern(self.scores(rows), rows), self.value))
        return torch.cat(mixed, 1).to(self.query).contiguous()

    def without(self, hidden: Bool[Tensor, "batch key"]) -> "AttentionCall":
        """The call in which no query sees some keys.

        Raises:
            ValueError: If a query has nothing left to look at, or several sequences are packed into one.
        """
        if self.boundaries is not None:
            raise ValueError("keys cannot be hidden in packed sequences.")
        visible, hidden = self._visible(None), hidden.to(self.key.device)[:, None, None]
        left = visible.masked_fill(hidden, _unseen(visible))
        if (alone := _seen(visible).any(-1) & ~_seen(left).any(-1)).any():
            raise ValueError(
                f"queries of sample {int(alone.nonzero()[0, 0])} would have nothing left to look at: leave some of the "
                f"keys that they may see."
            )
        return replace(self, mask=left)

    def scores(self, rows: "Rows | None" = None) -> Float[Tensor, "batch head row key"]:
        """Attention logits of all or some rows, in float32."""
        query = self.query if rows is None else rows.take(self.query)
        bias: Tensor | None = self.others.get("position_bias")
        if bias is not None and rows is not None:
            bias = rows.take(bias.expand(len(query), -1, -1, -1))
        return attention_scores(query, self.key, self.scaling, self._visible(rows), self.softcap, bias)

    def pattern(self, scores: Float[Tensor, "batch head row key"], rows: "Rows | None" = None) -> Tensor:
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

    def _visible(self, rows: "Rows | None") -> Tensor:
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


@dataclass
class AttentionTap:
    """The hook points of one layer's attention, and the queries whose rows they show."""

    hook_q: HookPoint
    hook_k: HookPoint
    hook_v: HookPoint
    hook_attn_scores: HookPoint
    hook_pattern: HookPoint
    hook_z: HookPoint
    progress: Progress
    rows_of_all: bool = False
    """Whether hooks see all rows, whatever they ask for."""

    crossing: bool = False
    """Whether keys are something else than the sequence."""

    uneditable: str = ""
    """Why `z` may be seen but not edited; empty if it may."""

    def attend(self, call: AttentionCall) -> Float[Tensor, "batch query head d_head"]:
        """Head outputs, after every hook has seen and edited what it asked for."""
        call = replace(
            call,
            query=_by_position(self.hook_q, call.query),
            key=_by_position(self.hook_k, call.key),
            value=_by_position(self.hook_v, call.value),
        )
        if (hidden := self.hook_k.ctx.pop("hidden", None)) is not None:
            call = call.without(hidden)
        z = call.heads_outputs()
        if self.hook_attn_scores.has_hooks() or self.hook_pattern.has_hooks():
            z = self._look(call, z)
        z, edited = _watch(self.hook_z, z)
        if edited and self.uneditable:
            raise ValueError(f"{self.hook_z.name} was edited, and {self.uneditable}")
        # Some layers view it in another shape.
        return z.contiguous()

    def _look(
        self, call: AttentionCall, z: Float[Tensor, "batch query head d_head"]
    ) -> Float[Tensor, "batch query head d_head"]:
        """Shows scores and pattern to their hooks; head outputs change only if the hooks changed them."""
        rows = self._rows(call)
        if rows is not None and not rows.real.any():
            return z
        seen = call.scores(rows)
        if rows is not None and not rows.real.all():
            seen = seen.masked_fill(~rows.real[:, None, :, None], torch.nan)
        # Columns are positions of the sequence, also where a sliding cache has dropped the first keys.
        dropped = 0 if self.crossing else int(self.progress.positions(seen.shape[-1])[0])
        seen = pad(seen, (dropped, 0), value=torch.finfo(torch.float32).min)
        scores, edited = _watch(self.hook_attn_scores, seen)
        seen = pad(call.pattern(scores[..., dropped:], rows), (dropped, 0))
        pattern, pattern_edited = _watch(self.hook_pattern, seen)
        if not (edited or pattern_edited):
            return z
        pattern = pattern[..., dropped:]
        from_rows = _mix(pattern, call.value).to(z)
        return from_rows if rows is None else rows.put(z, from_rows)

    def _rows(self, call: AttentionCall) -> Rows | None:
        """The rows that any hook asks for, among those that this call computes; None for all."""
        if self.rows_of_all:
            return None
        points = [point for point in (self.hook_attn_scores, self.hook_pattern) if point.has_hooks()]
        queries = self.progress.positions(call.query.shape[2])

        def asked(handle: LensHandle) -> Bool[Tensor, "batch query"]:
            where = getattr(handle.user_hook, "where", None) or Where()
            return per_row(where.select(self.progress, queries), call.query)

        here = torch.stack([asked(handle) for point in points for handle in (*point.fwd_hooks, *point.bwd_hooks)])
        rows = Rows.of(here.any(0))
        for point in points:
            point.ctx |= {"rows": rows, "queries": queries}
            if not all(torch.equal(asked(handle), here.any(0)) for handle in point.bwd_hooks):
                raise ValueError(
                    f"a backward hook on {point.name} needs to see the same rows as all other hooks there, and "
                    f"another asks for others: give all the same `queries`."
                )
        return None if here.any(0).all() else rows


def _unseen(mask: Tensor) -> float | int:
    """What a mask says of keys that are not seen."""
    return False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min


def _seen(mask: Tensor) -> Tensor:
    return mask if mask.dtype == torch.bool else mask > HIDDEN


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
    grouped = _grouped(query, key.shape[1])
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


@contextmanager
def tapped(taps: dict[nn.Module, AttentionTap], names: list[tuple[PreTrainedConfig, str]]) -> Iterator[None]:
    """Leads the attention of the given modules through their taps until the block ends.

    Args:
        taps: By attention module.
        names: The configurations whose modules ask for the function, and what it is called there: `NAME` or `PACKED`.

    Raises:
        RuntimeError: If heads follow a plan.
    """
    for name in (NAME, PACKED):
        AttentionInterface.register(name, _attention)
        AttentionMaskInterface.register(name, sdpa_mask)
    if any(config._attn_implementation_internal == SPARSE for config, _ in names):
        raise RuntimeError(
            f"heads follow a plan (corelens.sparse.apply), and their attention cannot be hooked then. "
            f"{see('plan-hooks')}"
        )
    try:
        for module, tap in taps.items():
            module.__dict__["_corelens_tap"] = tap
        with switched(names):
            yield
    finally:
        for module in taps:
            module.__dict__.pop("_corelens_tap", None)


@contextmanager
def switched(names: Sequence[tuple[PreTrainedConfig, str | None]]) -> Iterator[None]:
    """Has modules ask for another attention function until the block ends.

    Args:
        names: Configurations, and what the function is called there.
    """
    # The private name: the public setter would also change sub-configurations, the vision tower's among them.
    before = [(config, config._attn_implementation_internal) for config, _ in names]
    try:
        for config, name in names:
            config._attn_implementation_internal = name
        yield
    finally:
        for config, implementation in reversed(before):
            config._attn_implementation_internal = implementation


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What Hugging Face calls. The module that calls leads to the state, so that models do not see one another."""
    call = AttentionCall(module, query, key, value, attention_mask, scaling, others)
    tap: AttentionTap | None = module.__dict__.get("_corelens_tap")
    return call.heads_outputs() if tap is None else tap.attend(call), None


def _by_position(hook: HookPoint, heads_first: Tensor) -> Tensor:
    """Shows [batch head position d_head] to a hook as [batch position head d_head], the order that hooks know."""
    if not hook.has_hooks():
        return heads_first
    return _call(hook, heads_first.transpose(1, 2)).transpose(1, 2)


def _call(hook: HookPoint, tensor: Tensor) -> Tensor:
    if not hook.has_hooks():
        return tensor
    seen = hook(tensor)
    if seen.shape != tensor.shape:
        raise ValueError(f"a hook on {hook.name} returned shape {tuple(seen.shape)} in place of {tuple(tensor.shape)}.")
    return seen


def _watch(hook: HookPoint, tensor: Tensor) -> tuple[Tensor, bool]:
    """What the hook returns, and whether it differs: replaced, changed in place, or in need of a gradient."""
    if not hook.has_hooks():
        return tensor, False
    seen, edited = _watched(partial(_call, hook), tensor)
    return seen, edited or bool(hook.bwd_hooks)


def _watched(function: Callable[[Tensor], Tensor | None], tensor: Tensor) -> tuple[Tensor, bool]:
    """What a function makes of a tensor, and whether it differs: replaced, or changed in place."""
    if tensor.is_inference():
        # Inference tensors do not count changes made in place.
        with torch.inference_mode(False):
            tensor = tensor.clone()
    version = tensor._version
    seen = function(tensor)
    if seen is None:
        seen = tensor
    return seen, seen is not tensor or seen._version != version


def _mix(pattern: Float[Tensor, "batch head row key"], value: Tensor) -> Float[Tensor, "batch row head d_head"]:
    """Values mixed by attention, in float32."""
    mixed = einsum(
        _grouped(pattern, value.shape[1]),
        value.float(),
        "batch kv_head group row key, batch kv_head key d_head -> batch row kv_head group d_head",
    )
    return rearrange(mixed, "batch row kv_head group d_head -> batch row (kv_head group) d_head")


def _grouped(tensor: Float[Tensor, "batch head row last"], n_kv_heads: int) -> Float[Tensor, "batch kv group row last"]:
    """Query heads by the key-value head that they share, in float32; keys and values are never repeated."""
    return rearrange(tensor.float(), "batch (kv group) row last -> batch kv group row last", kv=n_kv_heads)
