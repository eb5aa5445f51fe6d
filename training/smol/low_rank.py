"""Low-rank updates of a frozen language model's attention (Hu et al. 2021)."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from corelens.hf.smol import UPDATE_SCALE

RANK = 16
MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj")


class LowRank(nn.Module):
    """A frozen linear map with a trained update of low rank, zero at first."""

    def __init__(self, frozen: nn.Linear) -> None:
        super().__init__()
        self.frozen = (frozen,)  # in a tuple: no part of what is trained and saved
        self.down = nn.Parameter(torch.randn(RANK, frozen.in_features) / math.sqrt(frozen.in_features))
        self.up = nn.Parameter(torch.zeros(frozen.out_features, RANK))
        self.is_on = True

    def forward(self, inputs: Tensor) -> Tensor:
        """The frozen map and, unless it is switched off, the update."""
        outputs = self.frozen[0](inputs)
        if not self.is_on:
            return outputs
        down, up = self.down.to(inputs.dtype), self.up.to(inputs.dtype)
        return outputs + UPDATE_SCALE * (inputs @ down.T) @ up.T


def add_updates(language: Any) -> nn.ModuleDict:
    """Replace the attention's matrices of every layer, and return the updates by the matrices' names."""
    updates = {}
    for number, layer in enumerate(language.layers):
        for name in MATRICES:
            update = LowRank(getattr(layer.self_attn, name))
            setattr(layer.self_attn, name, update)
            updates[f"layers-{number}-{name}"] = update
    return nn.ModuleDict(updates)
