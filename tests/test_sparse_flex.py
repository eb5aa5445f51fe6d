"""FlexAttention by head: the reference's numbers, torch's own block mask, and never eager attention unasked."""

from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask
from torch.testing import assert_close

FULL = torch.tensor([True, False, False, False])


def heads(n: int, d_head: int) -> Any:
    draw = torch.Generator().manual_seed(n)
    return torch.randn(1, 4, n, d_head, generator=draw), *torch.randn(2, 1, 2, n, d_head, generator=draw)


def test_heads_of_one_group_follow_their_own_rules_and_too_many_shapes_are_an_error():
    """One test, since each kind of shape takes seconds to compile."""
    from corelens.sparse.kernels import reference, visible_full, visible_streaming
    from corelens.sparse.kernels.flex import flex_by_head

    for n, sink, window in ((300, 4, 50), (130, 70, 20), (200, 0, 500)):
        query, key, value = heads(n, 32)
        position = torch.arange(n)
        streaming = visible_streaming(position, position, (position < sink)[None], window=window)
        visible = torch.where(FULL[:, None, None], visible_full(position, position), streaming)
        found = flex_by_head(query, key, value, FULL, sink=sink, window=window, scaling=0.2)
        assert_close(found.double(), reference(query, key, value, visible, 0.2), atol=2e-5, rtol=1e-5)

    with (
        torch._dynamo.config.patch(recompile_limit=1),
        pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit),
    ):
        flex_by_head(*heads(100, 16), FULL, sink=1, window=9, scaling=0.2)


@pytest.mark.parametrize(("n", "sink", "window"), [(640, 64, 128), (500, 3, 65), (129, 0, 1), (64, 100, 7)])
def test_blocks_are_those_that_torch_finds_by_looking_at_all_pairs(n: int, sink: int, window: int):
    from corelens.sparse.kernels.flex import BLOCK, block_mask

    ours = block_mask(n, FULL, sink, window)
    theirs = create_block_mask(ours.mask_mod, 1, len(FULL), n, n, device="cpu", BLOCK_SIZE=BLOCK)
    # Ours may call a block partial where only the end of the sequence makes it whole; none is left out or added.
    assert torch.equal(ours.to_dense(), theirs.to_dense())


def test_parts_of_prompts_are_refused():
    from corelens.sparse.kernels.flex import flex_by_head

    query, key, value = heads(20, 8)
    with pytest.raises(ValueError, match="19 queries and 20 keys"):
        flex_by_head(query[:, :, 1:], key, value, FULL, sink=1, window=4, scaling=1.0)
