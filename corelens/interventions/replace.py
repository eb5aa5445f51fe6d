"""The hook function that most interventions are made of: `Replace`, with zeros or a `Reference`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from corelens.heads import Head
from corelens.hooks.positions import PassState, PositionSelector, repeat_per_row

FwdHooks = list[tuple[str, Callable[..., Any]]]
"""Hooks for `hooks(fwd_hooks=...)` and `run_with_hooks(fwd_hooks=...)`, as (hook name, function); lists add up."""


@runtime_checkable
class Reference(Protocol):
    """Activations that replace those of a pass."""

    def check(self, name: str, where: PositionSelector, state: PassState) -> None:
        """Raise a ValueError if there are none for that hook point at those positions."""
        ...

    def at(
        self, name: str, state: PassState, positions: Int[Tensor, "position"]
    ) -> Float[Tensor, "#sample #position head d_head"]:
        """Replacement values at some positions of a hook point; ignored where nothing is replaced."""
        ...


@dataclass(frozen=True, eq=False)
class Replace:
    """Replaces activations of one hook point: those of some heads, or all if the point is not by head."""

    name: str
    """The hook point."""

    heads: tuple[Head, ...]
    """Heads of the hook point's layer; none for a point of the residual stream."""

    where: PositionSelector
    reference: Reference | None = field(repr=False)
    """None writes zeros."""

    def check(self, state: PassState) -> None:
        """Raise a ValueError if a pass in this state cannot act at these positions, or lacks their reference."""
        self.where.check(state)
        if self.reference is not None:
            self.reference.check(self.name, self.where, state)

    def __call__(self, tensor: Float[Tensor, "batch position *rest"], hook: Any) -> Tensor | None:
        state: PassState = hook.ctx["state"]
        positions = state.positions(tensor.shape[1])
        mask = repeat_per_row(self.where.select(state, positions), tensor)
        if not mask.any():
            return None
        # A copy: caches keep the original activations.
        edited = tensor.clone()
        by_head = edited if self.heads else edited[:, :, None]
        numbers = [number for _, number in self.heads] or [0]
        new = torch.zeros((), device=tensor.device)
        if self.reference is not None:
            new = repeat_per_row(self.reference.at(self.name, state, positions)[:, :, numbers], tensor).to(tensor)
        by_head[:, :, numbers] = torch.where(mask[..., None, None], new, by_head[:, :, numbers])
        return edited
