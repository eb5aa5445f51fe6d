"""The kernels of full and streaming heads compute what the masks of the reference say."""

import inspect
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import varlen as torch_varlen
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close

from corelens.sparse.kernels import (
    block_attention,
    decode_attention,
    full_attention,
    partial,
    reference,
    streaming,
    streaming_attention,
    visible_full,
    visible_streaming,
)
from corelens.sparse.kernels.block_sparse import block_shares, chosen_blocks
from corelens.sparse.kernels.partial import eager_partial_attention, flash_cpu

TOLERANCE = {torch.float32: dict(atol=2e-5, rtol=1e-5), torch.bfloat16: dict(atol=2e-2, rtol=2e-2)}


class Case:
    """Queries, keys and values of a sequence, and what is kept of it: sinks of each row and others."""

    def __init__(
        self, n: int, *, batch: int = 1, kv_heads: int = 1, group: int = 2, d_head: int = 32, window: int = 8,
        sink: int = 4, others: float = 0.0, starts: list[int] | None = None, dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ):  # fmt: skip
        draw = torch.Generator().manual_seed(seed)
        self.n, self.window, self.scaling = n, window, d_head**-0.5
        # Three times the spread of unit scores, so that the parts of a softmax weigh very differently.
        self.query = 3 * torch.randn(batch, kv_heads * group, n, d_head, generator=draw)
        self.key, self.value = torch.randn(2, batch, kv_heads, n, d_head, generator=draw)
        self.query, self.key, self.value = (part.to(dtype) for part in (self.query, self.key, self.value))
        self.start = None if starts is None else torch.tensor(starts)
        self.position = torch.arange(n)
        begin = torch.zeros(batch, 1, dtype=torch.long) if self.start is None else self.start[:, None]
        self.real = self.position >= begin
        chance = torch.rand(batch, n, generator=draw) < others
        self.kept = self.real & ((self.position < begin + sink) | chance)
        # What is kept stands in any order, with holes; what stands in holes must not be seen.
        size = int(self.kept.sum(-1).max()) + (1 if others else 0)
        order = self.kept.float().add(torch.rand(batch, n, generator=draw) / 2).argsort(-1, descending=True)[:, :size]
        self.kept_position = torch.where(self.kept.gather(1, order), order, -1)
        at = order[:, None, :, None].expand(-1, kv_heads, -1, d_head)
        self.kept_key, self.kept_value = self.key.gather(2, at), self.value.gather(2, at)

    def streaming(self, begin: int = 0, end: int | None = None, first: int = 0) -> Tensor:
        """The kernel on queries from `begin` to `end`, given the keys from `first` on."""
        query, (key, value) = self.query[:, :, begin:end], (x[:, :, first:end] for x in (self.key, self.value))
        kept = self.kept_key, self.kept_value, self.kept_position
        return streaming_attention(
            query, key, value, *kept, window=self.window, scaling=self.scaling, first=first, start=self.start
        )

    def full(self, begin: int = 0, end: int | None = None) -> Tensor:
        parts = self.query[:, :, begin:end], self.key[:, :, :end], self.value[:, :, :end]
        return full_attention(*parts, scaling=self.scaling, start=self.start)

    def expected(self, streaming: bool, begin: int = 0, end: int | None = None) -> Tensor:
        position = self.position[begin:end]
        if streaming:
            visible = visible_streaming(position, self.position, self.kept, window=self.window, start=self.start)
        else:
            visible = visible_full(position, self.position, start=self.start)
        return reference(self.query[:, :, begin:end], self.key, self.value, visible, self.scaling)

    def check(self, found: Tensor, streaming: bool, begin: int = 0, end: int | None = None) -> None:
        assert found.dtype == self.query.dtype
        assert found.isfinite().all()
        real = self.real[:, begin:end]
        found, expected = (x.transpose(1, 2)[real] for x in (found, self.expected(streaming, begin, end)))
        assert_close(found.double(), expected, **TOLERANCE[self.query.dtype])


@st.composite
def cases(draw: st.DrawFn, longest: int = 150) -> Case:
    n, batch = draw(st.integers(1, longest)), draw(st.integers(1, 3))
    starts = draw(st.none() | st.lists(st.integers(0, n), min_size=batch, max_size=batch))
    return Case(
        n, batch=batch, starts=starts, kv_heads=draw(st.integers(1, 3)), group=draw(st.integers(1, 8)),
        d_head=draw(st.sampled_from([32, 40, 128])), window=draw(st.integers(1, 2 * n)),
        sink=draw(st.integers(0, 10)), others=draw(st.sampled_from([0.0, 0.1, 0.5])),
        dtype=draw(st.sampled_from([torch.float32, torch.bfloat16])), seed=draw(st.integers(0, 99)),
    )  # fmt: skip


def test_the_masks_say_what_a_loop_says():
    case = Case(12, batch=2, window=3, sink=2, others=0.2, starts=[0, 5])
    full = visible_full(case.position, case.position, start=case.start)
    streaming = visible_streaming(case.position, case.position, case.kept, window=3, start=case.start)
    for row, begin in enumerate([0, 5]):
        for p in range(12):
            for q in range(12):
                assert full[row, 0, p, q] == (begin <= q <= p)
                assert streaming[row, 0, p, q] == (begin <= q <= p and (q > p - 3 or bool(case.kept[row, q])))


def test_the_reference_is_what_a_loop_finds():
    case = Case(5, kv_heads=2, group=2, d_head=3)
    visible = torch.rand(1, 4, 5, 5, generator=torch.Generator().manual_seed(1)) < 0.5
    visible[0, 1, 2] = False
    found = reference(case.query, case.key, case.value, visible, 0.7)
    for head in range(4):
        for row in range(5):
            weights = [
                (0.7 * case.query[0, head, row].double() @ case.key[0, head // 2, q].double()).exp()
                for q in range(5) if visible[0, head, row, q]
            ]  # fmt: skip
            values = [case.value[0, head // 2, q].double() for q in range(5) if visible[0, head, row, q]]
            mixed = (
                sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights) if weights else torch.zeros(3)
            )
            assert_close(found[0, head, row], mixed.double())


@given(cases(), st.data())
@settings(max_examples=100, deadline=None)
def test_any_part_of_a_sequence_is_what_the_reference_finds(case: Case, data: st.DataObject):
    begin = data.draw(st.integers(0, case.n - 1))
    end = data.draw(st.integers(begin + 1, case.n))
    case.check(case.full(begin, end), False, begin, end)
    needed = max(0, begin - case.window + 1)
    for first in {0, needed, data.draw(st.integers(0, needed))}:
        case.check(case.streaming(begin, end, first), True, begin, end)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("n", "window", "sink", "others", "d_head", "begin"),
    [
        (4096, 256, 64, 0.0, 64, 0),
        (2600, 511, 64, 0.02, 128, 0),
        (3000, 129, 0, 0.0, 32, 1777),
        (2222, 1, 1, 0.01, 256, 100),
        (1500, 4000, 64, 0.1, 64, 3),
    ],
)
def test_long_sequences_are_what_the_reference_finds(
    n: int, window: int, sink: int, others: float, d_head: int, begin: int, dtype: torch.dtype
):
    case = Case(n, window=window, sink=sink, others=others, d_head=d_head, dtype=dtype)
    case.check(case.full(begin), False, begin)
    case.check(case.streaming(begin), True, begin)


def test_padded_rows_of_long_sequences_are_what_the_reference_finds():
    case = Case(1300, batch=3, window=100, sink=8, starts=[0, 1297, 600])
    case.check(case.full(), False)
    case.check(case.streaming(), True)
    case.check(case.streaming(1250, first=1100), True, 1250)


@given(cases(longest=40))
@settings(max_examples=25, deadline=None)
def test_step_by_step_is_one_shot(case: Case):
    """Also from a buffer of sinks and a ring, in any order."""
    for p in range(case.n):
        case.check(case.full(p, p + 1), False, p, p + 1)
        case.check(case.streaming(p, p + 1, max(0, p - case.window + 1)), True, p, p + 1)
        near = (case.position <= p) & (case.position > p - case.window)
        far = (case.kept_position >= 0) & (case.kept_position <= p - case.window)
        order = torch.randperm(case.kept_position.shape[1] + case.n, generator=torch.Generator().manual_seed(p))
        key, value = torch.cat([case.kept_key, case.key], 2), torch.cat([case.kept_value, case.value], 2)
        visible = torch.cat([far, near & case.real], 1)[:, order]
        by_head = visible[:, None].expand(-1, case.query.shape[1], -1)
        query = case.query[:, :, p : p + 1]
        seeing, expected = visible.any(-1), case.expected(True, p, p + 1)
        for masks in (visible[:, None], by_head):
            found = decode_attention(query, key[:, :, order], value[:, :, order], masks, scaling=case.scaling)
            assert_close(found[seeing].double(), expected[seeing], **TOLERANCE[case.query.dtype])


def test_a_full_prompt_is_stock_attention_bit_for_bit():
    case = Case(300, batch=2, kv_heads=2, group=3)
    stock = dict(is_causal=True, scale=case.scaling, enable_gqa=True)
    expected = scaled_dot_product_attention(case.query, case.key, case.value, **stock)
    assert torch.equal(case.full(), expected)
    # A window as long as the prompt hides nothing.
    case.window = 300
    assert torch.equal(case.streaming(), expected)


def test_a_token_that_sees_all_needs_no_mask():
    case = Case(50, batch=2, kv_heads=2, group=4)
    query, everything = case.query[:, :, -1:], torch.ones(2, 1, 50, dtype=torch.bool)
    for visible in (None, everything):
        found = decode_attention(query, case.key, case.value, visible, scaling=case.scaling)
        case.check(found, False, 49)


def test_inputs_are_left_as_they_were():
    case = Case(200, batch=2, starts=[0, 60], others=0.1)
    before = [part.clone() for part in (case.query, case.key, case.value, case.kept_key, case.kept_position)]
    case.streaming(), case.full()
    for part, was in zip((case.query, case.key, case.value, case.kept_key, case.kept_position), before, strict=True):
        assert torch.equal(part, was)


@given(cases(longest=60))
@settings(max_examples=30, deadline=None)
def test_parts_by_hand_are_those_of_the_kernel(case: Case):
    visible = torch.rand(len(case.query), 1, case.n, case.n, generator=torch.Generator().manual_seed(0)) < 0.3
    for mask in (None, visible):
        parts = case.query, case.key, case.value, case.scaling, mask
        for found, expected in zip(eager_partial_attention(*parts), flash_cpu(*parts), strict=True):
            assert_close(found, expected, **TOLERANCE[case.query.dtype])


def by_hand_varlen(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor | None, max_q: int, max_k: int, *,
    return_aux: Any = None, scale: float | None = None, window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False, seqused_k: Tensor | None = None, block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What torch.nn.attention.varlen.varlen_attn is documented to compute, in torch."""
    assert cu_seq_k is not None
    assert scale is not None
    assert (enable_gqa, return_aux.lse, cu_seq_q.dtype, cu_seq_k.dtype) == (True, True, torch.int32, torch.int32)
    assert (max_q, max_k) == (int(cu_seq_q.diff().max()), int(cu_seq_k.diff().max()))
    found, lses = [], []
    for q, k, v in zip(
        query.split(cu_seq_q.diff().tolist()), key.split(cu_seq_k.diff().tolist()),
        value.split(cu_seq_k.diff().tolist()), strict=True,
    ):  # fmt: skip
        # Queries are the last of the keys' positions; -1 is no limit.
        behind = torch.arange(len(k)) - torch.arange(len(k) - len(q), len(k))[:, None]
        before, after = window_size
        visible = ((behind >= -before) | (before < 0)) & ((behind <= after) | (after < 0))
        one, lse = eager_partial_attention(*(x.transpose(0, 1)[None] for x in (q, k, v)), scale, visible[None, None])
        found.append(one[0].transpose(0, 1)), lses.append(lse[0])
    return torch.cat(found), torch.cat(lses, -1)


@given(cases(longest=80), st.data())
@settings(max_examples=50, deadline=None)
def test_the_path_of_gpus_is_what_the_reference_finds(case: Case, data: st.DataObject):
    """With torch's kernel replaced by one of the same signature that runs on a CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_varlen, "varlen_attn", by_hand_varlen)
        for module in (streaming, partial):
            patch.setattr(module, "has_varlen", lambda tensor: True)
        begin = data.draw(st.integers(0, case.n - 1))
        case.check(case.full(begin), False, begin)
        case.check(case.streaming(begin, first=max(0, begin - case.window + 1)), True, begin)


def test_the_stand_in_has_the_signature_of_torch():
    ours, theirs = (inspect.signature(f).parameters for f in (by_hand_varlen, torch_varlen.varlen_attn))
    assert [(p.name, p.kind, p.default) for p in ours.values()] == [
        (p.name, p.kind, p.default) for p in theirs.values()
    ]


def test_shares_of_blocks_are_what_a_loop_says():
    n, block, stride = 21, 8, 4
    case = Case(n, kv_heads=2, group=2, d_head=8)
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


def test_the_fewest_blocks_are_chosen_and_always_the_first_and_the_diagonal():
    shares = torch.tensor([[1.0, 0, 0, 0], [0.1, 0.9, 0, 0], [0.1, 0.7, 0.2, 0], [0.05, 0.5, 0.4, 0.05]])[None, None]
    few = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]]).bool()
    assert torch.equal(chosen_blocks(shares, 0.5)[0, 0], few)
    few[3, 2] = True
    assert torch.equal(chosen_blocks(shares, 0.51)[0, 0], few)


@given(cases(longest=100), st.sampled_from([0.1, 0.6, 0.95, 1.0]))
@settings(max_examples=40, deadline=None)
def test_block_attention_is_attention_over_the_chosen_blocks(case: Case, top_p: float):
    parts = case.query, case.key, case.value
    found = block_attention(*parts, top_p, scaling=case.scaling, block=16, stride=4, start=case.start)
    assert found.isfinite().all()
    for row, begin in enumerate([0] * len(found) if case.start is None else case.start.tolist()):
        if begin == case.n:
            continue
        query, key, value = (part[row : row + 1, :, begin:] for part in parts)
        blocks = chosen_blocks(block_shares(query, key, case.scaling, 16, 4), top_p)
        position = torch.arange(case.n - begin)
        chosen = blocks[:, :, position // 16][..., position // 16]
        expected = reference(query, key, value, chosen & visible_full(position, position), case.scaling)
        assert_close(found[row : row + 1, :, begin:].double(), expected, **TOLERANCE[case.query.dtype])


def test_all_of_the_attention_is_in_all_blocks():
    case = Case(300, kv_heads=2, group=2)
    case.check(block_attention(case.query, case.key, case.value, 1.0, scaling=case.scaling), False)


def test_bad_input_is_named():
    case = Case(20)
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(top_p=0.0), r"top_p=0.0 is outside \(0, 1\]"),
        (dict(stride=3), "stride=3 does not divide block=128"),
        (dict(stride=0), "stride=0 does not divide block=128"),
    ],
)
def test_bad_choices_of_blocks_are_named(options: dict[str, Any], message: str):
    case = Case(20)
    with pytest.raises(ValueError, match=message):
        block_attention(case.query, case.key, case.value, **dict(top_p=0.9, scaling=1.0) | options)
    with pytest.raises(ValueError, match="5 queries and 20 keys: blocks are chosen for whole prompts"):
        block_attention(case.query[:, :, 15:], case.key, case.value, 0.9, scaling=1.0)
