"""Low-rank updates: nothing at first, what is merged later, and nothing when switched off."""

import torch
from torch import nn

from corelens.hf.smol import UPDATE_SCALE
from training.smol.low_rank import LowRank


def test_an_update_is_zero_at_first_and_then_what_is_merged():
    torch.manual_seed(0)
    frozen, inputs = nn.Linear(8, 6, bias=False), torch.randn(3, 8)
    update = LowRank(frozen)
    assert torch.equal(update(inputs), frozen(inputs))
    assert {name for name, _ in update.named_parameters()} == {"down", "up"}
    nn.init.normal_(update.up)
    merged = frozen.weight + UPDATE_SCALE * update.up @ update.down
    torch.testing.assert_close(update(inputs), inputs @ merged.T)
    update.is_on = False
    assert torch.equal(update(inputs), frozen(inputs))
