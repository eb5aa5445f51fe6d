"""Hook functions that most interventions come down to."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from corelens.heads import Head, HeadSet
from corelens.hooks.positions import PassState, PositionSelector, repeat_per_row

FwdHooks = list[tuple[str, Callable[..., Any]]]
"""What `hooks(fwd_hooks=...)` and `run_with_hooks(fwd_hooks=...)` take; lists add up."""


def by_layer(heads: Iterable[Head]) -> dict[int, tuple[Head, ...]]:
    """The heads of each layer that has some."""
    layers = HeadSet(tuple(heads)).by_layer()
    return {layer: tuple(Head(layer, number) for number in numbers) for layer, numbers in layers.items()}


@runtime_checkable
class Reference(Protocol):
    """What is put in place of what a pass found."""

    def check(self, name: str, where: PositionSelector, progress: PassState) -> None:
        """Raises a ValueError if it has nothing for that hook point at those positions."""
        ...

    def at(
        self, name: str, progress: PassState, positions: Int[Tensor, "position"]
    ) -> Float[Tensor, "#sample #position head d_head"]:
        """What to put at some positions of a hook point; of no account where nothing is replaced."""
        ...


@dataclass(frozen=True, eq=False)
class Replace:
    """Replaces activations of one hook point: those of some heads, or all where the point is not by head."""

    name: str
    """The hook point."""

    heads: tuple[Head, ...]
    """All of its layer; none for a point of the residual stream."""

    where: PositionSelector
    reference: Reference | None = field(repr=False)
    """None writes zeros."""

    def check(self, progress: PassState) -> None:
        self.where.check(progress)
        if self.reference is not None:
            self.reference.check(self.name, self.where, progress)

    def __call__(self, tensor: Float[Tensor, "batch position *rest"], hook: Any) -> Tensor | None:
        progress: PassState = hook.ctx["progress"]
        positions = progress.positions(tensor.shape[1])
        chosen = repeat_per_row(self.where.select(progress, positions), tensor)
        if not chosen.any():
            return None
        # A copy: caches keep what was really found.
        edited = tensor.clone()
        by_head = edited if self.heads else edited[:, :, None]
        numbers = [number for _, number in self.heads] or [0]
        new = torch.zeros((), device=tensor.device)
        if self.reference is not None:
            new = repeat_per_row(self.reference.at(self.name, progress, positions)[:, :, numbers], tensor).to(tensor)
        by_head[:, :, numbers] = torch.where(chosen[..., None, None], new, by_head[:, :, numbers])
        return edited
