"""The kernels of full and streaming heads, against the reference under its masks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import varlen
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close

from corelens.sparse.kernels import decode_attention, full_attention, partial, streaming
from tests.helpers.kernel_cases import TOLERANCE, KernelCase, eager_varlen_attn, kernel_cases


@given(kernel_cases(), st.data())
@settings(max_examples=100, deadline=None)
def test_any_part_of_a_sequence_is_that_of_the_reference(case: KernelCase, data: st.DataObject):
    begin = data.draw(st.integers(0, case.n - 1))
    end = data.draw(st.integers(begin + 1, case.n))
    case.check(case.full(begin, end), False, begin, end)
    needed = max(0, begin - case.window + 1)
    for first in {0, needed, data.draw(st.integers(0, needed))}:
        case.check(case.streaming(begin, end, first), True, begin, end)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("n", "window", "sink", "retained_share", "d_head", "begin"),
    [
        (4096, 256, 64, 0.0, 64, 0),
        (2600, 511, 64, 0.02, 128, 0),
        (3000, 129, 0, 0.0, 32, 1777),
        (2222, 1, 1, 0.01, 256, 100),
        (1500, 4000, 64, 0.1, 64, 3),
    ],
)
def test_long_sequences_are_those_of_the_reference(
    n: int, window: int, sink: int, retained_share: float, d_head: int, begin: int, dtype: torch.dtype
):
    case = KernelCase(n, window=window, sink=sink, retained_share=retained_share, d_head=d_head, dtype=dtype)
    case.check(case.full(begin), False, begin)
    case.check(case.streaming(begin), True, begin)


def test_padded_rows_of_long_sequences_are_those_of_the_reference():
    case = KernelCase(1300, batch=3, window=100, sink=8, starts=[0, 1297, 600])
    case.check(case.full(), False)
    case.check(case.streaming(), True)
    case.check(case.streaming(1250, first=1100), True, 1250)


@given(kernel_cases(longest=40))
@settings(max_examples=25, deadline=None)
def test_step_by_step_is_one_shot(case: KernelCase):
    """Also from a buffer of sinks and a ring, in any order."""
    for p in range(case.n):
        case.check(case.full(p, p + 1), False, p, p + 1)
        case.check(case.streaming(p, p + 1, max(0, p - case.window + 1)), True, p, p + 1)
        near = (case.position <= p) & (case.position > p - case.window)
        far = (case.retained_position >= 0) & (case.retained_position <= p - case.window)
        n_slots = case.retained_position.shape[1] + case.n
        order = torch.randperm(n_slots, generator=torch.Generator().manual_seed(p))
        key, value = torch.cat([case.retained_key, case.key], 2), torch.cat([case.retained_value, case.value], 2)
        visible = torch.cat([far, near & case.real], 1)[:, order]
        by_head = visible[:, None].expand(-1, case.query.shape[1], -1)
        query = case.query[:, :, p : p + 1]
        real, expected = visible.any(-1), case.expected(True, p, p + 1)
        for mask in (visible[:, None], by_head):
            outputs = decode_attention(query, key[:, :, order], value[:, :, order], mask, scaling=case.scaling)
            assert_close(outputs[real].double(), expected[real], **TOLERANCE[case.query.dtype])


def test_a_full_prompt_is_stock_attention_bit_for_bit():
    case = KernelCase(300, batch=2, kv_heads=2, group=3)
    stock = dict(is_causal=True, scale=case.scaling, enable_gqa=True)
    expected = scaled_dot_product_attention(case.query, case.key, case.value, **stock)
    assert torch.equal(case.full(), expected)
    # A window as long as the prompt masks nothing.
    case.window = 300
    assert torch.equal(case.streaming(), expected)


def test_a_token_that_attends_to_all_needs_no_mask():
    case = KernelCase(50, batch=2, kv_heads=2, group=4)
    for visible in (None, torch.ones(2, 1, 50, dtype=torch.bool)):
        outputs = decode_attention(case.query[:, :, -1:], case.key, case.value, visible, scaling=case.scaling)
        case.check(outputs, False, 49)


def test_inputs_are_left_as_they_were():
    case = KernelCase(200, batch=2, starts=[0, 60], retained_share=0.1)
    inputs = case.query, case.key, case.value, case.retained_key, case.retained_position
    copies = [tensor.clone() for tensor in inputs]
    case.streaming(), case.full()
    for tensor, copy in zip(inputs, copies, strict=True):
        assert torch.equal(tensor, copy)


@given(kernel_cases(longest=80), st.data())
@settings(max_examples=50, deadline=None)
def test_the_path_of_gpus_is_that_of_the_reference(case: KernelCase, data: st.DataObject):
    """With torch's kernel replaced by one of the same signature that runs on a CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(varlen, "varlen_attn", eager_varlen_attn)
        for module in (streaming, partial):
            patch.setattr(module, "has_varlen", lambda tensor: True)
        begin = data.draw(st.integers(0, case.n - 1))
        case.check(case.full(begin), False, begin)
        case.check(case.streaming(begin, first=max(0, begin - case.window + 1)), True, begin)


def test_bad_input_is_named():
    case = KernelCase(20)
    with pytest.raises(ValueError, match="20 queries and 19 keys"):
        full_attention(case.query, case.key[:, :, 1:], case.value[:, :, 1:], scaling=1.0)
    with pytest.raises(ValueError, match="3 heads do not divide among 2 kv heads"):
        decode_attention(torch.zeros(1, 3, 1, 8), torch.zeros(1, 2, 4, 8), torch.zeros(1, 2, 4, 8), None, scaling=1.0)
    with pytest.raises(
        ValueError, match="4 keys before the first query, from position 6 on, do not fill a window of 8"
    ):
        case.streaming(10, first=6)
    case.query.requires_grad_()
    with pytest.raises(ValueError, match="has no gradients"):
        case.full()
    case.window = 0
    with pytest.raises(ValueError, match="window=0"), torch.no_grad():
        case.streaming()
