"""Plans: what each head keeps, how a budget is spent, and what is kept of the attention."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from corelens import toy
from corelens.experiments.sparse_eval import attention_recall, run_sparse_eval
from corelens.heads import Head, HeadSet
from corelens.interventions.token_pruning import TokenPruning, prune_tokens
from corelens.scores import HeadScores
from corelens.sparse import (
    Full,
    HeadPlan,
    Off,
    Streaming,
    TopBlocks,
    apply,
    best_groups,
    best_layers,
    hybrid,
    plans_and_controls,
    resolve,
)
from corelens.sparse.plan import LayerPlan
from tests.helpers.tiny import batch, build

CORE = HeadSet.parse("L0H1, L2H3, L2H2")


def test_a_head_that_sees_all_lifts_its_group_or_stays_alone():
    lifted = hybrid(CORE, 2, 5).layer(0, 8, 4)
    assert [type(rule).__name__ for rule in lifted.rules] == ["Full", "Full", *["Streaming"] * 6]
    assert (lifted.whole, lifted.window) == ((0,), (1, 2, 3))
    alone = hybrid(CORE, 2, 5, granularity="query").layer(0, 8, 4)
    assert [type(rule).__name__ for rule in alone.rules] == ["Streaming", "Full", *["Streaming"] * 6]
    assert (alone.whole, alone.window) == ((0,), (1, 2, 3))
    untouched = hybrid(CORE, 2, 5, untouched=[0, 1]).layer(1, 8, 4)
    assert untouched.whole == (0, 1, 2, 3)


def test_a_group_follows_the_head_that_sees_most_and_off_stays_off():
    rules = {Head(0, 0): Off(), Head(0, 1): TopBlocks(0.5), Head(0, 3): Full(), Head(0, 4): Off(), Head(0, 5): Off()}
    layer = HeadPlan(rules, Streaming(1, 4)).layer(0, 6, 3)
    assert layer.rules == (Off(), TopBlocks(0.5), Full(), Full(), Off(), Off())
    assert (layer.whole, layer.window, layer.off) == ((0, 1), (), (0, 4, 5))


@given(
    st.lists(st.sampled_from(["full", "blocks", "streaming", "off"]), min_size=12, max_size=12),
    st.sampled_from([1, 2, 3, 6, 12]),
)
def test_every_head_is_in_one_part_and_reads_its_own_keys(kinds: list[str], n_kv_heads: int):
    rules = {"full": Full(), "blocks": TopBlocks(0.9), "streaming": Streaming(2, 5), "off": Off()}
    layer = LayerPlan(tuple(rules[kind] for kind in kinds), n_kv_heads)
    read: dict[int, int] = {}
    for store, parts in ((layer.whole, layer.of_whole), (layer.window, layer.of_window)):
        for part in parts:
            per_key = len(part.heads) // len(part.kv_heads)
            for index, head in enumerate(part.heads):
                assert layer.rules[head] == part.rule
                read[head] = store[part.kv_heads[index // per_key]]
    assert read == {head: head // layer.group for head, kind in enumerate(kinds) if kind != "off"}
    assert not set(layer.whole) & set(layer.window)


@pytest.mark.parametrize("plan", [
    hybrid(CORE, 3, 9, text=True, granularity="query", untouched=[1]),
    HeadPlan({Head(0, 1): Off(), Head(1, 0): TopBlocks(0.7)}, Full()),
])  # fmt: skip
def test_plans_are_saved_and_loaded_whole(plan: HeadPlan, tmp_path: Path):
    plan.save(tmp_path / "plan.json")
    assert HeadPlan.load(tmp_path / "plan.json") == plan
    assert str(HeadPlan.load(tmp_path / "plan.json")) == str(plan)


def test_what_is_no_plan_is_said(tmp_path: Path):
    file = tmp_path / "plan.json"
    for text in ("{}", "[]", "no", json.dumps({**hybrid([]).to_json(), "granularity": "head"})):
        file.write_text(text)
        with pytest.raises(ValueError, match=f"{file} does not hold a head plan"):
            HeadPlan.load(file)
    with pytest.raises(ValueError, match="sink >= 0 and window >= 1, and these are 4 and 0"):
        Streaming(4, 0)
    with pytest.raises(ValueError, match=r"top_p must lie in \(0, 1\], and is 1.5"):
        TopBlocks(1.5)
    two = HeadPlan({Head(0, 0): Streaming(1, 2), Head(0, 2): Streaming(1, 3)}, Off())
    with pytest.raises(ValueError, match=r"must keep the same tokens, and some are streaming \(first 1, last 3\)"):
        two.layer(0, 4, 2)
    with pytest.raises(ValueError, match="6 query heads cannot share 4 heads of keys"):
        LayerPlan((Full(),) * 6, 4)


def test_shares_and_bytes_of_a_plan_are_counted_by_hand():
    model = build("qwen3_vl")  # 3 layers of 4 heads, 2 heads of keys of width 16
    placed = resolve(hybrid(CORE, 2, 5), model)
    assert placed.share_of_full_heads == 4 / 12
    assert placed.share_of_whole_groups == 2 / 6
    one = 2 * 16 * 4
    assert placed.full_cache_bytes(100) == 6 * 100 * one
    assert placed.bytes(100) == (2 * 100 + 4 * 7) * one
    alone = resolve(hybrid(CORE, 2, 5, granularity="query"), model)
    assert (alone.share_of_full_heads, alone.bytes(100)) == (3 / 12, placed.bytes(100))


def test_heads_that_cannot_follow_a_rule_are_named():
    model = build("gemma3")  # two sliding layers and a full one
    with pytest.raises(ValueError, match="L0H1 cannot be streaming: layer 0 sees a window only"):
        resolve(HeadPlan({Head(0, 1): Streaming(1, 2)}, Full()), model)
    with pytest.raises(ValueError, match="the plan names L2H9, and the model has no such head"):
        resolve(HeadPlan({Head(2, 9): Full()}, Full()), model)
    # That a head sees all that its layer lets it see asks for nothing.
    assert list(resolve(HeadPlan({Head(0, 1): Full()}, Full()), model).layers) == [2]


def ranking(values: list[list[float]]) -> HeadScores:
    return HeadScores(torch.tensor([values]), "ram", ("a",))


def test_budgets_are_spent_as_they_say():
    scores = ranking([[0.9, 0.0, 0.5, 0.5], [0.1, 0.2, 0.3, 0.4]])
    assert str(best_groups(scores, 0.25, 2)) == "L0H0, L0H1"
    assert str(best_groups(scores, 0.25, 2, "mean")) == "L0H2, L0H3"
    assert str(best_groups(scores, 0.5, 2)) == "L0H0, L0H1, L0H2, L0H3"
    assert str(best_layers(scores, 0.5)) == "L0H0, L0H1, L0H2, L0H3"
    with pytest.raises(ValueError, match=r"share must lie in \(0, 1\], and is 0"):
        best_groups(scores, 0, 2)
    plans = plans_and_controls(scores, 2, Streaming(1, 4), [0.25, 1.0], seeds=[0, 1])
    assert list(plans["none"][0].rules) == []
    assert list(plans["core 25%"][0].rules) == [Head(0, 0), Head(0, 2)]
    assert {len(plan.rules) for name, own in plans.items() for plan in own if "25%" in name and "lay" not in name} == {
        2
    }
    assert len(plans["random 25%"]) == 2
    # Nothing is left to draw from.
    assert "random 100%" not in plans
    assert len(plans["core 100%"][0].rules) == 8
    small = plans_and_controls(scores, 2, Streaming(1, 4), [0.001, 0.0025])
    assert {"core 0.1%", "core 0.25%"} <= small.keys()


def test_kept_attention_is_what_a_loop_adds_up(toy_model: Any):
    samples = list(toy.scenes(2, seed=3))
    inputs = toy_model.prepare([sample.images for sample in samples], [sample.question for sample in samples])
    plans = [hybrid(HeadSet.parse("L1H3, L4H0"), 2, 9, granularity="query"), hybrid([], 0, 3, text=True)]
    plans += [HeadPlan({Head(0, 0): Off()}, Full())]
    _, cache = toy_model.run_with_cache(
        inputs, queries=inputs.tokens.last, names_filter=toy_model.attn_names("pattern")
    )
    n = inputs["input_ids"].shape[1]
    for plan, found in zip(plans, attention_recall(toy_model, inputs, plans), strict=True):
        for sample in range(2):
            masses = []
            real = [k for k in range(n) if not inputs.tokens.padding[sample, k]]
            for head in toy_model.heads:
                rule = plan.rule(head)
                row = cache["pattern", head.layer][sample, head.head, 0]
                if isinstance(rule, Streaming):
                    visual = inputs.tokens.visual[sample]
                    kept = [
                        k
                        for k in real
                        if k >= n - rule.window or k in real[: rule.sink] or (rule.keep_text and not visual[k])
                    ]
                    masses.append(sum(row[k].item() for k in kept))
                else:
                    masses.append(float(isinstance(rule, Full)))
            assert_close(found[sample].item(), sum(masses) / len(masses), atol=1e-5, rtol=0)


def test_blocks_that_hold_all_are_full_heads_and_few_are_less():
    model, inputs = build("llava"), batch("llava")
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        stock = model(**inputs).logits[real]
        with apply(model, HeadPlan({}, TopBlocks(1.0))):
            assert_close(model(**inputs).logits[real], stock, rtol=1e-4, atol=5e-5)


def test_the_cost_of_a_plan_is_counted_at_most():
    model = build("llava")
    blocks = resolve(HeadPlan({}, TopBlocks(0.5)), model).shares
    assert (blocks.full_heads, blocks.prefill_share(1_000)) == (1, 1)
    mixed = {Head(0, head): Streaming(1, 9) for head in range(4)} | {Head(1, 0): TopBlocks(0.5)}
    found = resolve(HeadPlan(mixed, Streaming(2, 90), granularity="query"), model).shares
    n_heads = sum(len(layer.rules) for layer in resolve(HeadPlan({}, Full()), model).layers.values())
    assert (found.sink, found.window, found.full_heads) == (2, 90, 1 / n_heads)


def test_plans_are_compared_part_by_part_and_again(toy_model: Any, tmp_path: Path):
    samples, core = list(toy.scenes(18, seed=3)), HeadSet.parse("L3H14, L3H0, L2H10, L2H4, L2H6")
    plans = {"core": [hybrid(core, 4, 16, granularity="query")], "none": [hybrid([], 4, 16)]}
    plans |= {"tokens": [TokenPruning(1, 0.05)]}
    found = run_sparse_eval(toy_model, samples, plans, max_new_tokens=4, out=tmp_path)
    plain, kept, none = (found.accuracies(name, "")[0] for name in ("plain", "core", "none"))
    assert plain >= 0.9
    assert kept >= plain - 0.1
    assert none < plain - 0.3
    assert found.accuracies("tokens", "")[0] < plain
    assert found.attention_recall("plain") == 1
    assert 0 < found.attention_recall("none") < found.attention_recall("core") < 1
    again = run_sparse_eval(toy_model, samples, plans, max_new_tokens=4, out=tmp_path)
    assert all(torch.equal(again.values[name], found.values[name]) for name in found.values)
    with pytest.raises(ValueError, match=r"holds another run: plans\.core was"):
        run_sparse_eval(toy_model, samples, {"core": [hybrid(core, 4, 17)]}, max_new_tokens=4, out=tmp_path)


def test_pruned_tokens_are_those_that_a_layer_attends_to_least_and_nobody_sees_them_later(toy_model: Any):
    samples = list(toy.scenes(2, seed=3))
    inputs = toy_model.prepare([sample.images for sample in samples], [sample.question for sample in samples])
    names = toy_model.attn_names("pattern")
    _, cache = toy_model.run_with_cache(inputs, names_filter=names)
    with toy_model.hooks(fwd_hooks=prune_tokens(toy_model, inputs, TokenPruning(1, 0.25))):
        _, hidden = toy_model.run_with_cache(inputs, names_filter=names)
    for sample in range(2):
        visual = inputs.tokens.visual[sample].nonzero().flatten()
        by_attention = sorted(visual.tolist(), key=lambda k: -cache["pattern", 1][sample, :, -1, k].mean().item())
        real = (~inputs.tokens.padding[sample]).nonzero().flatten()
        assert (hidden["pattern", 2][sample][:, real][:, :, by_attention[16:]] == 0).all()
        assert (hidden["pattern", 5][sample][:, -1, by_attention[16:]] == 0).all()
        assert (hidden["pattern", 5][sample][:, -1, by_attention[:16]] > 0).any(0).all()
    assert torch.equal(hidden["pattern", 1], cache["pattern", 1])
    assert prune_tokens(toy_model, inputs, TokenPruning(1, 1.0)) == []
    with pytest.raises(ValueError, match=r"share must lie in \(0, 1\], and is 1.2"):
        TokenPruning(1, 1.2)
    with pytest.raises(ValueError, match="no hook point"):
        prune_tokens(toy_model, inputs, TokenPruning(9, 0.5))
