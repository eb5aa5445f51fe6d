"""Attention rows of chosen query positions."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from corelens.heads import Head
from corelens.hooks.positions import PositionSelector, repeat_per_row


def row_mask(queries: Bool[Tensor, "batch position"]) -> Bool[Tensor, "batch query"]:
    """Which rows of a pattern limited by `queries` are real.

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
    """The query positions, within one call, whose attention rows are wanted."""

    position: Int[Tensor, "batch query"]
    """Zero where `real` is False."""

    real: Bool[Tensor, "batch query"]

    @classmethod
    def of(cls, queries: Bool[Tensor, "batch position"]) -> "QueryRows":
        real = row_mask(queries)
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
class RowHook:
    """A hook function on scores or patterns that is shown the rows it asked for, whatever rows others ask for."""

    function: Callable[..., Any]
    where: PositionSelector

    @property
    def heads(self) -> Iterable[Head]:
        """What the function acts on."""
        return getattr(self.function, "heads", ())

    def __call__(self, tensor: Float[Tensor, "batch head row key"], hook: Any) -> Tensor | None:
        shown: QueryRows | None = hook.ctx.get("rows")
        if shown is None:
            return self.function(tensor, hook=hook)
        wanted = repeat_per_row(self.where.select(hook.ctx["progress"], hook.ctx["queries"]), tensor)
        mine = wanted.gather(1, shown.position) & shown.real
        if torch.equal(mine, shown.real):
            return self.function(tensor, hook=hook)
        if not mine.any():
            return None
        rows = QueryRows.of(mine)
        own = rows.take(tensor).masked_fill(~rows.real[:, None, :, None], torch.nan)
        seen, edited = call_detecting_edits(lambda own: self.function(own, hook=hook), own)
        return rows.put(tensor.transpose(1, 2), seen.transpose(1, 2)).transpose(1, 2) if edited else None


def call_detecting_edits(function: Callable[[Tensor], Tensor | None], tensor: Tensor) -> tuple[Tensor, bool]:
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
