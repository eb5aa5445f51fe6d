"""Random layers under a plan, run in passes through a cache, and masked attention over all keys as their oracle."""

from typing import NamedTuple

import torch
from einops import einsum, repeat
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from corelens.sparse.attention import attend_by_plan
from corelens.sparse.cache_layer import HeadSparseLayer
from corelens.sparse.plan import LayerPlan
from corelens.sparse.rules import Full, HeadRule, Off, Streaming, StreamingBlocks


class PlannedLayer(NamedTuple):
    """A layer's plan, and the passes in which a batch of two samples comes."""

    kinds: list[str]
    """Rules of the query heads by name."""

    sink: int
    window: int
    keep_text: bool
    n_kv_heads: int
    length: int
    start: list[int]
    """First position of each sample that is not padding."""

    spans: list[tuple[int, int]]
    """First position of every pass, and the one after its last."""

    def plan(self, keep_text: bool | None = None) -> LayerPlan:
        # Not made while an example is drawn: the checks of types draw numbers of their own.
        streaming = Streaming(self.sink, self.window, self.keep_text if keep_text is None else keep_text)
        blocks = StreamingBlocks(self.sink % 3, 1 + self.window % 4, 3)
        rules = {"full": Full(), "streaming": streaming, "blocks": blocks, "off": Off()}
        return LayerPlan(tuple(rules[kind] for kind in self.kinds), self.n_kv_heads)

    def random_qkv(self, seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        counts = len(self.kinds), self.n_kv_heads, self.n_kv_heads
        return [torch.randn(2, n, self.length, 8, generator=generator) for n in counts]

    def check(self, outputs: Tensor, expected: Tensor) -> None:
        """Assert that head outputs are equal where they are not of padding."""
        for sample, begin in enumerate(self.start):
            assert_close(outputs[sample, :, begin:], expected[sample, :, begin:], atol=2e-6, rtol=1e-5)


@st.composite
def planned_layers(draw: st.DrawFn) -> PlannedLayer:
    n_kv_heads, group = draw(st.sampled_from([(1, 1), (1, 4), (2, 1), (2, 2), (3, 2)]))
    sink, window, keep_text = draw(st.integers(0, 6)), draw(st.integers(1, 12)), draw(st.booleans())
    n_heads = n_kv_heads * group
    kinds = draw(st.lists(st.sampled_from(["full", "streaming", "blocks", "off"]), min_size=n_heads, max_size=n_heads))
    length = draw(st.integers(1, 30))
    start = draw(st.lists(st.integers(0, length - 1), min_size=2, max_size=2))
    cuts = draw(st.lists(st.integers(1, 30), max_size=12))
    ends = sorted({min(cut, length) for cut in cuts} | {length})
    spans = list(zip([0, *ends], ends, strict=False))
    return PlannedLayer(kinds, sink, window, keep_text, n_kv_heads, length, start, spans)


def run_passes(
    layer: HeadSparseLayer, qkv: list[Tensor], start: list[int], spans: list[tuple[int, int]], text: Tensor | None
) -> Tensor:
    """Head outputs of all positions, computed span by span through the cache."""
    outputs = []
    for first, end in spans:
        query, key, value = (tensor[:, :, first:end] for tensor in qkv)
        pending, _ = layer.update(key, value)
        mask = torch.tensor([min(begin, end) for begin in start])[:, None, None, None] if any(start) else None
        text_of_span = None if text is None else text[:, first:end]
        outputs.append(attend_by_plan(query, pending, mask, text_of_span, query.shape[-1] ** -0.5))
    return torch.cat(outputs, 2)


def masked_attention_by_pairs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rules: tuple[HeadRule, ...],
    start: list[int],
    text: Tensor | None = None,
    generated: frozenset[int] = frozenset(),
) -> Tensor:
    """softmax(q k^T / sqrt(d) + mask) v in float64, with the mask of each head filled pair by pair by its rule."""
    batch, n_heads, length, _ = query.shape
    group = n_heads // key.shape[1]
    visible = torch.zeros(batch, n_heads, length, length, dtype=torch.bool)
    for sample in range(batch):
        for head, rule in enumerate(rules):
            for p in range(start[sample], length):
                for q in range(start[sample], p + 1):
                    match rule:
                        case Streaming(sink, window, keep_text):
                            is_text = keep_text and text is not None and bool(text[sample, q])
                            retained = q - start[sample] < sink or is_text
                            visible[sample, head, p, q] = retained or q > p - window
                        case StreamingBlocks(sink, window, block):
                            p_block, q_block = (p - start[sample]) // block, (q - start[sample]) // block
                            near_or_first = q_block < sink or p_block - q_block < window
                            visible[sample, head, p, q] = near_or_first or p in generated
                        case Full():
                            visible[sample, head, p, q] = True
    key, value = (repeat(t, "b kv position d -> b (kv group) position d", group=group).double() for t in (key, value))
    scores = einsum(query.double(), key, "b head p d, b head q d -> b head p q") * query.shape[-1] ** -0.5
    pattern = scores.masked_fill(~visible, -torch.inf).softmax(-1).nan_to_num(0)
    return einsum(pattern, value, "b head p q, b head q d -> b head p d").float()
