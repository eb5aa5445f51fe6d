"""Plans on models: shares and bytes counted by hand, and heads that cannot follow a plan."""

import pytest

from corelens.heads import Head, HeadSet
from corelens.sparse import Full, HeadPlan, Streaming, TopBlocks, hybrid, resolve
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
