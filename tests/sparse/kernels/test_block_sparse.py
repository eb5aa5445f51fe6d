"""FlexAttention over chosen blocks, which is compiled here as on a GPU: the reference's numbers, or an error."""

from typing import Any

import pytest
import torch
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch.testing import assert_close

from corelens.sparse.kernels import block_sparse, reference
from corelens.sparse.kernels.block_sparse import flex_blocks


def heads(n: int, d_head: int) -> Any:
    draw = torch.Generator().manual_seed(n)
    return torch.randn(1, 4, n, d_head, generator=draw), *torch.randn(2, 1, 2, n, d_head, generator=draw)


def test_chosen_blocks_are_read_and_too_many_shapes_are_an_error(monkeypatch: pytest.MonkeyPatch):
    """One test, since each kind of shape takes seconds to compile."""
    monkeypatch.setattr(block_sparse, "has_flex", lambda query: True)
    for n, top_p in ((300, 0.5), (128, 0.2), (200, 1.0)):
        query, key, value = heads(n, 32)
        shares = block_sparse.block_shares(query, key, 0.2, 64, 8)
        blocks = block_sparse.chosen_blocks(shares, top_p)
        visible = blocks.repeat_interleave(64, 2).repeat_interleave(64, 3)[:, :, :n, :n].tril()
        expected = reference(query, key, value, visible, 0.2)
        found = block_sparse.block_attention(query, key, value, top_p, scaling=0.2, block=64)
        assert_close(found.double(), expected, atol=2e-5, rtol=1e-5)

    query, key, value = heads(128, 16)
    with (
        torch._dynamo.config.patch(recompile_limit=1),
        pytest.raises(FailOnRecompileLimitHit),
    ):
        flex_blocks(query, key, value, torch.ones(1, 4, 2, 2).tril().bool(), block=64, scaling=0.2)
