"""Block-sparse attention: estimated shares against loops, and attention over the selected blocks."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch.testing import assert_close

from corelens.sparse.kernels import block_attention, block_sparse, reference, visible_full
from corelens.sparse.kernels.block_sparse import block_shares, flex_blocks, select_blocks
from tests.helpers.kernel_cases import TOLERANCE, KernelCase, kernel_cases


def test_shares_of_blocks_are_those_of_a_loop():
    n, block, stride = 21, 8, 4
    case = KernelCase(n, kv_heads=2, group=2, d_head=8)
    shares = block_shares(case.query, case.key, case.scaling, block, stride)
    assert shares.shape == (1, 4, 3, 3)
    squares = -(-n // stride)
    for head in range(4):
        logits = torch.full((squares, squares), -torch.inf)
        for i in range(squares):
            for j in range(i + 1):
                pairs = [(i * stride + r, j * stride + stride - 1 - r) for r in range(stride)]
                scores = [case.query[0, head, p] @ case.key[0, head // 2, q] for p, q in pairs if max(p, q) < n]
                logits[i, j] = case.scaling * sum(scores) / stride
        for i in range(3):
            rows = logits.softmax(-1)[i * block // stride : (i + 1) * block // stride].mean(0)
            for j in range(3):
                assert_close(shares[0, head, i, j], rows[j * block // stride : (j + 1) * block // stride].sum())


def test_the_fewest_blocks_are_selected_and_always_the_first_and_the_diagonal():
    shares = torch.tensor([[1.0, 0, 0, 0], [0.1, 0.9, 0, 0], [0.1, 0.7, 0.2, 0], [0.05, 0.5, 0.4, 0.05]])[None, None]
    expected = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]]).bool()
    assert torch.equal(select_blocks(shares, 0.5)[0, 0], expected)
    expected[3, 2] = True
    assert torch.equal(select_blocks(shares, 0.51)[0, 0], expected)


@given(kernel_cases(longest=100), st.sampled_from([0.1, 0.6, 0.95, 1.0]))
@settings(max_examples=40, deadline=None)
def test_block_attention_is_attention_over_the_selected_blocks(case: KernelCase, top_p: float):
    qkv = case.query, case.key, case.value
    outputs = block_attention(*qkv, top_p, scaling=case.scaling, block=16, stride=4, start=case.start)
    assert outputs.isfinite().all()
    for row, begin in enumerate([0] * len(outputs) if case.start is None else case.start.tolist()):
        if begin == case.n:
            continue
        query, key, value = (tensor[row : row + 1, :, begin:] for tensor in qkv)
        blocks = select_blocks(block_shares(query, key, case.scaling, 16, 4), top_p)
        position = torch.arange(case.n - begin)
        selected = blocks[:, :, position // 16][..., position // 16]
        expected = reference(query, key, value, selected & visible_full(position, position), case.scaling)
        assert_close(outputs[row : row + 1, :, begin:].double(), expected, **TOLERANCE[case.query.dtype])


def test_all_of_the_attention_is_in_all_blocks():
    case = KernelCase(300, kv_heads=2, group=2)
    case.check(block_attention(case.query, case.key, case.value, 1.0, scaling=case.scaling), False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(top_p=0.0), r"top_p=0.0 is outside \(0, 1\]"),
        (dict(stride=3), "stride=3 does not divide block=128"),
        (dict(stride=0), "stride=0 does not divide block=128"),
    ],
)
def test_bad_choices_of_blocks_are_named(options: dict[str, Any], message: str):
    case = KernelCase(20)
    with pytest.raises(ValueError, match=message):
        block_attention(case.query, case.key, case.value, **dict(top_p=0.9, scaling=1.0) | options)
    with pytest.raises(ValueError, match="5 queries and 20 keys: blocks are selected for whole prompts"):
        block_attention(case.query[:, :, 15:], case.key, case.value, 0.9, scaling=1.0)


def random_heads(n: int, d_head: int) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of four heads that share two KV heads."""
    generator = torch.Generator().manual_seed(n)
    query = torch.randn(1, 4, n, d_head, generator=generator)
    key, value = torch.randn(2, 1, 2, n, d_head, generator=generator)
    return query, key, value


def test_selected_blocks_are_read_by_flex_attention_and_too_many_shapes_are_an_error(monkeypatch: pytest.MonkeyPatch):
    """One test, compiled here as on a GPU, since each kind of shape takes seconds to compile."""
    monkeypatch.setattr(block_sparse, "has_flex", lambda query: True)
    for n, top_p in ((300, 0.5), (128, 0.2), (200, 1.0)):
        query, key, value = random_heads(n, 32)
        blocks = select_blocks(block_shares(query, key, 0.2, 64, 8), top_p)
        visible = blocks.repeat_interleave(64, 2).repeat_interleave(64, 3)[:, :, :n, :n].tril()
        expected = reference(query, key, value, visible, 0.2)
        outputs = block_attention(query, key, value, top_p, scaling=0.2, block=64)
        assert_close(outputs.double(), expected, atol=2e-5, rtol=1e-5)

    query, key, value = random_heads(128, 16)
    with (
        torch._dynamo.config.patch(recompile_limit=1),
        pytest.raises(FailOnRecompileLimitHit),
    ):
        flex_blocks(query, key, value, torch.ones(1, 4, 2, 2).tril().bool(), block=64, scaling=0.2)
