"""Plans on models: shares and bytes counted by hand, and heads that cannot follow a plan."""

import pytest

from corelens.heads import Head, HeadSet
from corelens.sparse import Full, HeadPlan, Off, Streaming, StreamingBlocks, TopBlocks, hybrid, published, resolve
from tests.helpers.tiny import build

CORE = HeadSet.parse("L0H1, L2H3, L2H2")


def test_shares_and_bytes_of_a_plan_are_counted_by_hand():
    model = build("qwen3_vl")  # 3 layers of 4 heads, 2 KV heads of width 16
    resolved = resolve(hybrid(CORE, 2, 5), model)
    assert resolved.share_of_full_heads == 4 / 12
    assert resolved.share_of_full_kv_heads == 2 / 6
    position = 2 * 16 * 4
    assert resolved.full_cache_bytes(100) == 6 * 100 * position
    assert resolved.bytes(100) == (2 * 100 + 4 * 7) * position
    alone = resolve(hybrid(CORE, 2, 5, granularity="query"), model)
    assert (alone.share_of_full_heads, alone.bytes(100)) == (3 / 12, resolved.bytes(100))


def test_a_plan_has_two_budgets_heads_and_cache():
    model = build("qwen3_vl")  # 12 heads, 6 KV heads
    own, papers = (resolve(plan, model) for plan in (hybrid(CORE, 2, 5, granularity="query"), published(CORE)))
    assert (own.share_of_full_heads, papers.share_of_full_heads) == (3 / 12, 3 / 12)
    assert (own.share_of_cache(100), papers.share_of_cache(100)) == ((2 * 100 + 4 * 7) / 600, 1)
    assert str(papers) == "25.0% of query heads attend to everything, 100.0% of KV heads store all positions"
    assert repr(own) == f"<ResolvedPlan of 3 layers: {own}>"
    assert f"({228 / 600:.1%})" in own.summary(100)
    assert (papers.shares.sink, papers.shares.window, papers.shares.full_kv_heads) == (512, 4096, 1)


def test_a_plan_whose_sinks_and_window_cover_the_prompt_is_full_attention_and_says_so():
    model = build("qwen3_vl")
    for plan, longest in (
        (hybrid(CORE, 2, 5), 7),
        (published(CORE), 4608),
        (HeadPlan({}, StreamingBlocks(1, 2, 3)), 9),
    ):
        resolved = resolve(plan, model)
        assert [resolved.is_full(n) for n in (1, longest, longest + 1)] == [True, True, False]
        assert resolved.summary(longest).endswith("and all heads attend to everything")
        assert resolved.summary(longest + 1).endswith("%)")
        assert [resolved.shares.prefill_share(n) < 1 for n in (longest, longest + 1)] == [False, True]
    assert not resolve(HeadPlan({}, TopBlocks(1.0)), model).is_full(1)
    assert not resolve(HeadPlan({Head(0, 0): Off()}, Full()), model).is_full(1)


def test_heads_that_cannot_follow_a_rule_are_named():
    model = build("gemma3")  # two sliding layers and a full one
    with pytest.raises(ValueError, match="L0H1 cannot be streaming: layer 0 attends to a window only"):
        resolve(HeadPlan({Head(0, 1): Streaming(1, 2)}, Full()), model)
    with pytest.raises(ValueError, match="L2H9 does not exist: layer 2 has 4 heads"):
        resolve(HeadPlan({Head(2, 9): Full()}, Full()), model)
    # A full head of a sliding layer needs nothing.
    assert list(resolve(HeadPlan({Head(0, 1): Full()}, Full()), model).layers) == [2]


def test_the_cost_of_a_plan_is_counted_at_most():
    model = build("llava")
    blocks = resolve(HeadPlan({}, TopBlocks(0.5)), model).shares
    assert (blocks.full_heads, blocks.prefill_share(1_000)) == (1, 1)
    mixed = {Head(0, head): Streaming(1, 9) for head in range(4)} | {Head(1, 0): TopBlocks(0.5)}
    shares = resolve(HeadPlan(mixed, Streaming(2, 90), granularity="query"), model).shares
    n_heads = sum(len(layer.rules) for layer in resolve(HeadPlan({}, Full()), model).layers.values())
    assert (shares.sink, shares.window, shares.full_heads) == (2, 90, 1 / n_heads)
