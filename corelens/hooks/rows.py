"""Attention rows of chosen queries.

`queries=` in `run_with_cache`, `run_with_hooks` and `hooks` chooses positions of the prompt. A pattern then has only
their rows, so that nothing S x S is computed:

    queries   [batch position]        positions 1 and 3 of one sample, 2 of another
    pattern   [batch head row key]    row 0 is position 1, row 1 position 3; of the other, row 0 is 2, row 1 is NaN
    row_mask  [batch row]             which rows are real

Each hook function may request rows of its own: the pass computes all requested rows once (`QueryRows`), and `RowHook`
gives each function its own. `corelens.hooks.taps` computes the rows.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from corelens.heads import Head
from corelens.hooks.positions import PositionSelector, repeat_per_row

Hook = tuple[str | Callable[[str], bool], Callable[..., Any]]
"""A hook name, or a filter of names, and a function `(tensor, hook)`."""

Hooks = Sequence[Hook]


def row_mask(queries: Bool[Tensor, "batch position"]) -> Bool[Tensor, "batch query"]:
    """Mask of the real rows of a pattern limited by `queries`.

    A pattern limited to chosen queries has as many rows as the sample with most of them; row r of a sample is its r-th
    chosen query. Samples with fewer have NaN in their last rows, where this mask is False.

    Examples:
        >>> row_mask(torch.tensor([[True, False, True], [False, False, True]]))
        tensor([[ True,  True],
                [ True, False]])
    """
    counts = queries.sum(-1, keepdim=True)
    return torch.arange(int(counts.max()), device=queries.device) < counts


@dataclass
class QueryRows:
    """Query positions, within one call of the attention function, whose rows are computed."""

    position: Int[Tensor, "batch query"]
    """Zero where `real` is False."""

    real: Bool[Tensor, "batch query"]

    @classmethod
    def of(cls, queries: Bool[Tensor, "batch position"]) -> "QueryRows":
        """Rows of the queries where the mask is True."""
        real = row_mask(queries)
        # Chosen positions come first in a stable sort, in their own order.
        order = queries.logical_not().to(torch.uint8).argsort(dim=-1, stable=True)[:, : real.shape[1]]
        return cls(torch.where(real, order, 0), real)

    def take(self, tensor: Shaped[Tensor, "batch head query last"]) -> Shaped[Tensor, "batch head row last"]:
        """Select the rows; those that are not real repeat the first position."""
        batch = torch.arange(len(tensor), device=tensor.device)[:, None]
        return tensor.transpose(1, 2)[batch, self.position].transpose(1, 2)

    def put(
        self, tensor: Shaped[Tensor, "batch query *rest"], rows: Shaped[Tensor, "batch row *rest"]
    ) -> Shaped[Tensor, "batch query *rest"]:
        """Replace the rows in a tensor of all queries."""
        batch = torch.arange(len(tensor), device=tensor.device)[:, None].expand_as(self.position)
        return tensor.index_put((batch[self.real], self.position[self.real]), rows[self.real])


@dataclass(frozen=True, eq=False)
class RowHook:
    """Hook function on scores or patterns that gets the rows of its own queries, whatever rows other hooks request."""

    function: Callable[..., Any]
    where: PositionSelector

    @property
    def heads(self) -> Iterable[Head]:
        """Heads on which the function acts; empty if it does not say."""
        return getattr(self.function, "heads", ())

    def __call__(self, tensor: Float[Tensor, "batch head row key"], hook: Any) -> Tensor | None:
        computed: QueryRows | None = hook.ctx.get("rows")
        if computed is None:
            return self.function(tensor, hook=hook)
        selected = repeat_per_row(self.where.select(hook.ctx["state"], hook.ctx["queries"]), tensor)
        selected = selected.gather(1, computed.position) & computed.real
        if torch.equal(selected, computed.real):
            return self.function(tensor, hook=hook)
        if not selected.any():
            return None
        rows = QueryRows.of(selected)
        values = rows.take(tensor).masked_fill(~rows.real[:, None, :, None], torch.nan)
        values, edited = call_detecting_edits(lambda values: self.function(values, hook=hook), values)
        return rows.put(tensor.transpose(1, 2), values.transpose(1, 2)).transpose(1, 2) if edited else None


def limit_rows(hooks: Hooks, queries: Bool[Tensor, "batch position"] | None) -> list[Hook]:
    """Limit hook functions on scores and patterns to the rows of some queries.

    Args:
        hooks: Pairs of a hook name, or a filter of names, and a function. A function with an attribute `where`, as
            interventions have, gets the rows that it selects, whatever `queries` are.
        queries: Positions of the prompt; None for all rows.
    """
    return [(name, _limited(name, function, queries)) for name, function in hooks]


def _limited(
    name: str | Callable[[str], bool], function: Callable[..., Any], queries: Bool[Tensor, "batch position"] | None
) -> Callable[..., Any]:
    if isinstance(function, RowHook):
        return function
    on_rows = not isinstance(name, str) or name.endswith((".hook_attn_scores", ".hook_pattern"))
    where = getattr(function, "where", None) or (None if queries is None else PositionSelector(queries, "prefill"))
    return RowHook(function, where) if on_rows and where is not None else function


def call_detecting_edits(function: Callable[[Tensor], Tensor | None], tensor: Tensor) -> tuple[Tensor, bool]:
    """Call a hook function; return its tensor, and True if it replaced the tensor or changed it in place."""
    if tensor.is_inference():
        # Inference tensors do not count changes made in place.
        with torch.inference_mode(False):
            tensor = tensor.clone()
    version = tensor._version
    result = function(tensor)
    if result is None:
        result = tensor
    return result, result is not tensor or result._version != version
