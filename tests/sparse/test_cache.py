"""The cache of planned layers against masked attention over all keys, for any plan, padding and way to cut a prompt."""

import torch
from einops import einsum, repeat
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from corelens.sparse.attention import attend_by_plan
from corelens.sparse.cache import StaticHeadSparseLayer
from corelens.sparse.cache_layer import HeadSparseLayer
from corelens.sparse.plan import Full, HeadRule, LayerPlan, Off, Streaming


def masked(
    query: Tensor, key: Tensor, value: Tensor, rules: tuple[HeadRule, ...], start: list[int], text: Tensor | None = None
) -> Tensor:
    """Every position of every head, pair by pair as the rules say, in float64."""
    batch, n_heads, length, _ = query.shape
    group = n_heads // key.shape[1]
    visible = torch.zeros(batch, n_heads, length, length, dtype=torch.bool)
    for sample in range(batch):
        for head, rule in enumerate(rules):
            for p in range(start[sample], length):
                for q in range(start[sample], p + 1):
                    match rule:
                        case Streaming(sink, window, keeps):
                            kept = q - start[sample] < sink or (keeps and text is not None and bool(text[sample, q]))
                            visible[sample, head, p, q] = kept or q > p - window
                        case Full():
                            visible[sample, head, p, q] = True
    key, value = (repeat(t, "b kv position d -> b (kv group) position d", group=group).double() for t in (key, value))
    scores = einsum(query.double(), key, "b head p d, b head q d -> b head p q") * query.shape[-1] ** -0.5
    pattern = scores.masked_fill(~visible, -torch.inf).softmax(-1).nan_to_num(0)
    return einsum(pattern, value, "b head p q, b head q d -> b head p d").float()


def passes(length: int, cuts: list[int]) -> list[tuple[int, int]]:
    ends = sorted({min(cut, length) for cut in cuts} | {length})
    return list(zip([0, *ends], ends, strict=False))


def in_passes(
    layer: HeadSparseLayer, qkv: list[Tensor], start: list[int], spans: list[tuple[int, int]], text: Tensor | None
):
    found = []
    for first, last in spans:
        query, key, value = (tensor[:, :, first:last] for tensor in qkv)
        held, _ = layer.update(key, value)
        begin = torch.tensor([min(one, last) for one in start])[:, None, None, None]
        mask = begin if any(start) else None
        new = None if text is None else text[:, first:last]
        found.append(attend_by_plan(query, held, mask, new, query.shape[-1] ** -0.5))
    return torch.cat(found, 2)


def planned(kinds: list[str], window: tuple[int, int, bool], n_kv_heads: int) -> LayerPlan:
    # Not made while an example is drawn: the checks of types draw numbers of their own.
    rules = {"full": Full(), "streaming": Streaming(*window), "off": Off()}
    return LayerPlan(tuple(rules[kind] for kind in kinds), n_kv_heads)


@st.composite
def layers(draw: st.DrawFn):
    n_kv, group = draw(st.sampled_from([(1, 1), (1, 4), (2, 1), (2, 2), (3, 2)]))
    window = draw(st.integers(0, 6)), draw(st.integers(1, 12)), draw(st.booleans())
    kinds = draw(st.lists(st.sampled_from(["full", "streaming", "off"]), min_size=n_kv * group, max_size=n_kv * group))
    length = draw(st.integers(1, 30))
    start = draw(st.lists(st.integers(0, length - 1), min_size=2, max_size=2))
    cuts = draw(st.lists(st.integers(1, 30), max_size=12))
    return kinds, window, n_kv, length, start, passes(length, cuts)


@given(layers(), st.integers(0, 9))
@settings(max_examples=120, deadline=None)
def test_any_plan_in_any_passes_is_masked_attention_over_all_keys(case, seed: int):
    kinds, window, n_kv, length, start, spans = case
    plan = planned(kinds, window, n_kv)
    generator = torch.Generator().manual_seed(seed)
    qkv = [
        torch.randn(2, n, length, 8, generator=generator) for n in (len(plan.rules), plan.n_kv_heads, plan.n_kv_heads)
    ]
    keeps = plan.streaming is not None and plan.streaming.keep_text
    text = torch.rand(2, length, generator=generator) < 0.3 if keeps else None
    expected = masked(*qkv, plan.rules, start, text)
    found = in_passes(HeadSparseLayer(plan), qkv, start, spans, text)
    for sample in range(2):
        assert_close(found[sample, :, start[sample] :], expected[sample, :, start[sample] :], atol=2e-6, rtol=1e-5)


@given(layers())
@settings(max_examples=40, deadline=None)
def test_one_token_at_a_time_is_one_pass(case):
    kinds, window, n_kv, length, start, _ = case
    plan = planned(kinds, window, n_kv)
    qkv = [torch.randn(2, n, length, 8) for n in (len(plan.rules), n_kv, n_kv)]
    text = torch.zeros(2, length, dtype=torch.bool)
    steps = in_passes(HeadSparseLayer(plan), qkv, start, [(i, i + 1) for i in range(length)], text)
    once = in_passes(HeadSparseLayer(plan, reserved=length), qkv, start, [(0, length)], text)
    for sample in range(2):
        assert_close(steps[sample, :, start[sample] :], once[sample, :, start[sample] :], atol=2e-6, rtol=1e-5)


@given(layers(), st.integers(0, 9))
@settings(max_examples=80, deadline=None)
def test_a_static_layer_is_the_growing_one(case, seed: int):
    kinds, (sink, window, _), n_kv, length, start, spans = case
    plan = planned(kinds, (sink, window, False), n_kv)
    generator = torch.Generator().manual_seed(seed)
    qkv = [torch.randn(2, n, length, 8, generator=generator) for n in (len(plan.rules), n_kv, n_kv)]
    grown = in_passes(HeadSparseLayer(plan), qkv, start, spans, None)
    static = in_passes(StaticHeadSparseLayer(plan, length + 3), qkv, start, spans, None)
    for sample in range(2):
        assert_close(static[sample, :, start[sample] :], grown[sample, :, start[sample] :], atol=2e-6, rtol=1e-5)
