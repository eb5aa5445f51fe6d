"""Plans: the rules of heads, the groups that share keys, and files."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corelens.heads import Head, HeadSet
from corelens.sparse import Full, HeadPlan, Off, Streaming, StreamingBlocks, TopBlocks, hybrid, published
from corelens.sparse.plan import LayerPlan

CORE = HeadSet.parse("L0H1, L2H3, L2H2")


def test_a_full_head_lifts_its_group_or_stays_alone():
    lifted = hybrid(CORE, 2, 5).layer(0, 8, 4)
    assert [type(rule).__name__ for rule in lifted.rules] == ["Full", "Full", *["Streaming"] * 6]
    assert (lifted.full_kv_heads, lifted.window_kv_heads) == ((0,), (1, 2, 3))
    alone = hybrid(CORE, 2, 5, granularity="query").layer(0, 8, 4)
    assert [type(rule).__name__ for rule in alone.rules] == ["Streaming", "Full", *["Streaming"] * 6]
    assert (alone.full_kv_heads, alone.window_kv_heads) == ((0,), (1, 2, 3))
    dense = hybrid(CORE, 2, 5, dense_layers=[0, 1]).layer(1, 8, 4)
    assert dense.full_kv_heads == (0, 1, 2, 3)


def test_the_published_plan_lifts_no_head_and_stores_all_keys():
    plan = published(CORE)
    layer = plan.layer(0, 8, 4)
    assert layer.rules == (StreamingBlocks(4, 32, 128), Full(), *[StreamingBlocks(4, 32, 128)] * 6)
    assert (layer.full_kv_heads, layer.window_kv_heads, layer.streaming) == ((0, 1, 2, 3), (), None)
    assert "all others streaming in the prompt (first 4 and last 32 blocks of 128)" in str(plan)
    assert StreamingBlocks().in_tokens == Streaming(512, 4096)


def test_a_group_follows_its_most_permissive_head_and_off_stays_off():
    rules = {Head(0, 0): Off(), Head(0, 1): TopBlocks(0.5), Head(0, 3): Full(), Head(0, 4): Off(), Head(0, 5): Off()}
    layer = HeadPlan(rules, Streaming(1, 4)).layer(0, 6, 3)
    assert layer.rules == (Off(), TopBlocks(0.5), Full(), Full(), Off(), Off())
    assert (layer.full_kv_heads, layer.window_kv_heads, layer.off_heads) == ((0, 1), (), (0, 4, 5))


@given(
    st.lists(st.sampled_from(["full", "top", "blocks", "streaming", "off"]), min_size=12, max_size=12),
    st.sampled_from([1, 2, 3, 6, 12]),
)
def test_every_head_is_in_one_rule_group_and_reads_its_own_keys(kinds: list[str], n_kv_heads: int):
    rules = {"full": Full(), "top": TopBlocks(0.9), "blocks": StreamingBlocks(1, 2, 3), "streaming": Streaming(2, 5)}
    rules |= {"off": Off()}
    layer = LayerPlan(tuple(rules[kind] for kind in kinds), n_kv_heads)
    kv_head_of: dict[int, int] = {}
    for kv_heads, groups in (
        (layer.full_kv_heads, layer.full_groups),
        (layer.window_kv_heads, layer.window_groups),
    ):
        for group in groups:
            per_key = len(group.heads) // len(group.kv_indices)
            for index, head in enumerate(group.heads):
                assert layer.rules[head] == group.rule
                kv_head_of[head] = kv_heads[group.kv_indices[index // per_key]]
    assert kv_head_of == {head: head // layer.group_size for head, kind in enumerate(kinds) if kind != "off"}
    assert not set(layer.full_kv_heads) & set(layer.window_kv_heads)


@pytest.mark.parametrize("plan", [
    hybrid(CORE, 3, 9, keep_text=True, granularity="query", dense_layers=[1]),
    HeadPlan({Head(0, 1): Off(), Head(1, 0): TopBlocks(0.7)}, Full()),
    published(CORE),
])  # fmt: skip
def test_plans_are_saved_and_loaded_whole(plan: HeadPlan, tmp_path: Path):
    plan.save(tmp_path / "plan.json")
    assert HeadPlan.load(tmp_path / "plan.json") == plan
    assert str(HeadPlan.load(tmp_path / "plan.json")) == str(plan)


def test_what_is_no_plan_is_named(tmp_path: Path):
    file = tmp_path / "plan.json"
    for text in ("{}", "[]", "no", json.dumps({**hybrid([]).to_json(), "granularity": "head"})):
        file.write_text(text)
        with pytest.raises(ValueError, match=f"{file} does not hold a head plan"):
            HeadPlan.load(file)
    with pytest.raises(ValueError, match="sink >= 0 and window >= 1, and these are 4 and 0"):
        Streaming(4, 0)
    with pytest.raises(ValueError, match="window >= 1 and block >= 1, and these are 4, 32 and 0"):
        StreamingBlocks(block=0)
    with pytest.raises(ValueError, match=r"top_p must lie in \(0, 1\], and is 1.5"):
        TopBlocks(1.5)
    conflicting = HeadPlan({Head(0, 0): Streaming(1, 2), Head(0, 2): Streaming(1, 3)}, Off())
    with pytest.raises(ValueError, match=r"must keep the same tokens, and some are streaming \(first 1, last 3\)"):
        conflicting.layer(0, 4, 2)
    with pytest.raises(ValueError, match="6 query heads cannot share 4 KV heads"):
        LayerPlan((Full(),) * 6, 4)
