"""Attention of heads that stream blocks, against masks filled block by block."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import varlen
from torch.testing import assert_close

from corelens.sparse.kernels import (
    block_streaming,
    block_streaming_attention,
    near_or_first_blocks,
    partial,
    reference,
    streaming,
    visible_full,
)
from tests.helpers.kernel_cases import TOLERANCE, KernelCase, eager_varlen_attn, kernel_cases


def mask_by_blocks(n: int, begin: int, sink: int, window: int, block: int) -> Tensor:
    """Mask of all pairs, as Block-Sparse-Attention's tests fill theirs: by rows of blocks, then causal."""
    visible = torch.zeros(n, n, dtype=torch.bool)
    for row in range(-(-(n - begin) // block)):
        rows = slice(begin + row * block, begin + (row + 1) * block)
        visible[rows, begin + max(0, row + 1 - window) * block : begin + (row + 1) * block] = True
        visible[rows, begin : begin + sink * block] = True
    return visible.tril()


@given(kernel_cases(), st.integers(0, 3), st.integers(1, 4), st.sampled_from([1, 4, 16, 33]), st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_streaming_blocks_is_attention_under_their_mask(
    case: KernelCase, sink: int, window: int, block: int, share: float
):
    check(case, int(share * (case.n - 1)), dict(sink=sink, window=window, block=block))


@given(kernel_cases(longest=60), st.integers(0, 2), st.integers(1, 3), st.sampled_from([4, 7]), st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_the_path_of_gpus_is_attention_under_their_mask(
    case: KernelCase, sink: int, window: int, block: int, share: float
):
    """With torch's kernel replaced by one of the same signature that runs on a CPU."""
    begin = int(share * (case.n - 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(varlen, "varlen_attn", eager_varlen_attn)
        for module in (streaming, partial):
            patch.setattr(module, "has_varlen", lambda tensor: True)
        check(case, begin, dict(sink=sink, window=window, block=block))


def check(case: KernelCase, begin: int, rule: dict[str, int]) -> None:
    """Assert that the kernel's outputs for queries from `begin` on are those of the reference."""
    outputs = block_streaming_attention(
        case.query[:, :, begin:], case.key, case.value, **rule, scaling=case.scaling, start=case.start
    )
    assert outputs.dtype == case.query.dtype
    assert outputs.isfinite().all()
    starts = [0] * len(outputs) if case.start is None else case.start.tolist()
    visible = torch.stack([mask_by_blocks(case.n, first, **rule) for first in starts])[:, None]
    expected = reference(case.query, case.key, case.value, visible, case.scaling)[:, :, begin:]
    real = case.real[:, begin:]
    outputs, expected = (tensor.transpose(1, 2)[real] for tensor in (outputs, expected))
    assert_close(outputs.double(), expected, **TOLERANCE[case.query.dtype])
    position = torch.arange(case.n)
    masks = near_or_first_blocks(position, position, **rule, start=case.start).expand_as(visible)
    masks = masks & visible_full(position, position, start=case.start)
    assert torch.equal(masks.transpose(1, 2)[case.real], visible.transpose(1, 2)[case.real])


def test_the_blocks_of_the_paper_are_4_and_32_of_128():
    n = 37 * 128 + 5
    position = torch.arange(n)
    visible = near_or_first_blocks(position, position, sink=4, window=32, block=128)[0, 0].tril()
    # The last query is in block 37: it misses blocks 4 and 5.
    assert visible[-1].nonzero()[:, 0].tolist() == [*range(512), *range(768, n)]
    # The last position that sees all before it.
    assert visible[36 * 128 - 1].sum() == 36 * 128
    assert visible[36 * 128].sum() == 35 * 128 + 1


def test_whole_prompts_are_read_by_flex_attention_on_a_gpu(monkeypatch: pytest.MonkeyPatch):
    """Compiled here as on a GPU."""
    monkeypatch.setattr(block_streaming, "has_flex", lambda query: True)
    case = KernelCase(700, kv_heads=2, group=2)
    rule = dict(sink=1, window=2, block=128)
    outputs = block_streaming_attention(case.query, case.key, case.value, **rule, scaling=case.scaling)
    visible = mask_by_blocks(700, 0, **rule)[None, None]
    expected = reference(case.query, case.key, case.value, visible, case.scaling)
    assert_close(outputs.double(), expected, **TOLERANCE[torch.float32])


def test_more_queries_than_keys_are_an_error():
    case = KernelCase(20)
    with pytest.raises(ValueError, match="20 queries and 5 keys"):
        block_streaming_attention(
            case.query, case.key[:, :, :5], case.value[:, :, :5], sink=1, window=1, block=4, scaling=1.0
        )
