"""Random sequences for the kernels of head-sparse attention, with what the reference computes of them."""

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from corelens.sparse.kernels import full_attention, reference, streaming_attention, visible_full, visible_streaming
from corelens.sparse.kernels.partial import eager_partial_attention

TOLERANCE = {torch.float32: dict(atol=2e-5, rtol=1e-5), torch.bfloat16: dict(atol=2e-2, rtol=2e-2)}


class KernelCase:
    """Queries, keys and values of a sequence, and its retained positions: sinks of each row, and a random share."""

    def __init__(
        self, n: int, *, batch: int = 1, kv_heads: int = 1, group: int = 2, d_head: int = 32, window: int = 8,
        sink: int = 4, retained_share: float = 0.0, starts: list[int] | None = None,
        dtype: torch.dtype = torch.float32, seed: int = 0,
    ):  # fmt: skip
        generator = torch.Generator().manual_seed(seed)
        self.n, self.window, self.scaling = n, window, d_head**-0.5
        # Three times the spread of unit scores, so that the parts of a softmax weigh very differently.
        self.query = 3 * torch.randn(batch, kv_heads * group, n, d_head, generator=generator)
        self.key, self.value = torch.randn(2, batch, kv_heads, n, d_head, generator=generator)
        self.query, self.key, self.value = (tensor.to(dtype) for tensor in (self.query, self.key, self.value))
        self.start = None if starts is None else torch.tensor(starts)
        self.position = torch.arange(n)
        begin = torch.zeros(batch, 1, dtype=torch.long) if self.start is None else self.start[:, None]
        self.real = self.position >= begin
        extra = torch.rand(batch, n, generator=generator) < retained_share
        self.retained = self.real & ((self.position < begin + sink) | extra)
        # Retained positions stand in any order, with holes; what stands in holes must not be visible.
        size = int(self.retained.sum(-1).max()) + (1 if retained_share else 0)
        noise = torch.rand(batch, n, generator=generator) / 2
        order = self.retained.float().add(noise).argsort(-1, descending=True)[:, :size]
        self.retained_position = torch.where(self.retained.gather(1, order), order, -1)
        index = order[:, None, :, None].expand(-1, kv_heads, -1, d_head)
        self.retained_key, self.retained_value = self.key.gather(2, index), self.value.gather(2, index)

    def streaming(self, begin: int = 0, end: int | None = None, first: int = 0) -> Tensor:
        """The kernel's outputs for queries from `begin` to `end`, given the keys from `first` on."""
        query, (key, value) = self.query[:, :, begin:end], (x[:, :, first:end] for x in (self.key, self.value))
        retained = self.retained_key, self.retained_value, self.retained_position
        return streaming_attention(
            query, key, value, *retained, window=self.window, scaling=self.scaling, first=first, start=self.start
        )

    def full(self, begin: int = 0, end: int | None = None) -> Tensor:
        """The kernel's outputs for queries from `begin` to `end`."""
        qkv = self.query[:, :, begin:end], self.key[:, :, :end], self.value[:, :, :end]
        return full_attention(*qkv, scaling=self.scaling, start=self.start)

    def expected(self, streaming: bool, begin: int = 0, end: int | None = None) -> Tensor:
        """The reference's outputs for queries from `begin` to `end`."""
        position = self.position[begin:end]
        if streaming:
            visible = visible_streaming(position, self.position, self.retained, window=self.window, start=self.start)
        else:
            visible = visible_full(position, self.position, start=self.start)
        return reference(self.query[:, :, begin:end], self.key, self.value, visible, self.scaling)

    def check(self, outputs: Tensor, streaming: bool, begin: int = 0, end: int | None = None) -> None:
        """Assert that outputs of real positions are those of the reference."""
        assert outputs.dtype == self.query.dtype
        assert outputs.isfinite().all()
        real = self.real[:, begin:end]
        outputs, expected = (x.transpose(1, 2)[real] for x in (outputs, self.expected(streaming, begin, end)))
        assert_close(outputs.double(), expected, **TOLERANCE[self.query.dtype])


@st.composite
def kernel_cases(draw: st.DrawFn, longest: int = 150) -> KernelCase:
    n, batch = draw(st.integers(1, longest)), draw(st.integers(1, 3))
    starts = draw(st.none() | st.lists(st.integers(0, n), min_size=batch, max_size=batch))
    return KernelCase(
        n, batch=batch, starts=starts, kv_heads=draw(st.integers(1, 3)), group=draw(st.integers(1, 8)),
        d_head=draw(st.sampled_from([32, 40, 128])), window=draw(st.integers(1, 2 * n)),
        sink=draw(st.integers(0, 10)), retained_share=draw(st.sampled_from([0.0, 0.1, 0.5])),
        dtype=draw(st.sampled_from([torch.float32, torch.bfloat16])), seed=draw(st.integers(0, 99)),
    )  # fmt: skip


def eager_varlen_attn(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor | None, max_q: int, max_k: int, *,
    return_aux: Any = None, scale: float | None = None, window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False, seqused_k: Tensor | None = None, block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Stand-in for torch.nn.attention.varlen.varlen_attn on a CPU, by its documentation.

    For each sequence, softmax(scale * q k^T) v over keys at most `window_size[0]` before and `window_size[1]` after the
    query, where queries are the last of the keys' positions.
    """
    assert cu_seq_k is not None
    assert scale is not None
    assert (enable_gqa, return_aux.lse, cu_seq_q.dtype, cu_seq_k.dtype) == (True, True, torch.int32, torch.int32)
    assert (max_q, max_k) == (int(cu_seq_q.diff().max()), int(cu_seq_k.diff().max()))
    outputs, lses = [], []
    for q, k, v in zip(
        query.split(cu_seq_q.diff().tolist()), key.split(cu_seq_k.diff().tolist()),
        value.split(cu_seq_k.diff().tolist()), strict=True,
    ):  # fmt: skip
        offset = torch.arange(len(k)) - torch.arange(len(k) - len(q), len(k))[:, None]
        # -1 is no limit.
        before, after = window_size
        visible = ((offset >= -before) | (before < 0)) & ((offset <= after) | (after < 0))
        qkv = (x.transpose(0, 1)[None] for x in (q, k, v))
        output, lse = eager_partial_attention(*qkv, scale, visible[None, None])
        outputs.append(output[0].transpose(0, 1)), lses.append(lse[0])
    return torch.cat(outputs), torch.cat(lses, -1)
