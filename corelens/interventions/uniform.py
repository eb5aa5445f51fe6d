"""Uniform attention: heads that attend to keys alike, without a pattern."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from corelens.heads import Head
from corelens.hooks.positions import PassState, PositionSelector, repeat_per_row

UniformKeys = Literal["visible", "all"]
"""Keys that a head attends to alike: those that it may attend to, or all of the pass."""

UNIFORM_KEYS: dict[str, UniformKeys] = {"uniform": "visible", "uniform_all_keys": "all"}
"""The keys, by method."""


@dataclass(frozen=True, eq=False)
class UniformAttention:
    """Lets heads attend to keys alike; a hook for queries that leaves them as they are.

    It marks rows for `corelens.hooks.taps`, which needs no pattern for them: patterns, logits and head outputs that
    other hooks get are those of uniform attention.
    """

    heads: tuple[Head, ...]
    where: PositionSelector
    keys: UniformKeys

    def check(self, state: PassState) -> None:
        """Raise a ValueError if a pass in this state cannot act at these positions."""
        self.where.check(state)

    def __call__(self, query: Float[Tensor, "batch query head d_qk"], hook: Any) -> None:
        state: PassState = hook.ctx["state"]
        positions = repeat_per_row(self.where.select(state, state.positions(query.shape[1])), query)
        # A session calls it with one of several copies of the batch.
        copy, n_copies = hook.ctx.get("copy", (0, 1))
        marks = hook.ctx.setdefault("uniform", {})
        if self.keys not in marks:
            shape = (len(query) * n_copies, *query.shape[1:3])
            marks[self.keys] = torch.zeros(shape, dtype=torch.bool, device=query.device)
        for _, number in self.heads:
            marks[self.keys][copy::n_copies, :, number] |= positions
