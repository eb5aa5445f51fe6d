"""Interventions against surgery on the weights and hooks written by hand."""

import copy
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from torch.testing import assert_close

import corelens as cl
from corelens import (
    Head,
    HeadSet,
    HookedMLLM,
    Role,
    ablate,
    attention_knockout,
    mean_activations,
    resample_activations,
    zeroed_weights,
)
from tests.helpers import processors, tiny
from tests.helpers.questions import samples


@pytest.fixture(scope="module", params=["qwen3_vl", "llava"])
def model(request: pytest.FixtureRequest) -> Any:
    return HookedMLLM(tiny.build(request.param), processors.build(request.param))


HEADS = "L0H1, L2H0, L2H3"


@torch.no_grad()
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_zero_ablation_is_zeroed_columns_of_w_o(family: str):
    model = HookedMLLM(tiny.build(family))
    surgery = copy.deepcopy(model.hf_model)
    for layer, head in HeadSet.parse(HEADS):
        w_o = surgery.get_decoder().layers[layer].self_attn.o_proj.weight
        w_o[:, head * 16 : (head + 1) * 16] = 0
    inputs = tiny.batch(family)
    expected = surgery(**inputs).logits
    ablated = model.run_with_hooks(inputs, fwd_hooks=ablate(HeadSet.parse(HEADS)))
    assert_close(ablated, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ablated, model(inputs), atol=1e-3)
    settings = dict(max_new_tokens=6, do_sample=False, eos_token_id=None)
    with model.hooks(fwd_hooks=ablate(HeadSet.parse(HEADS))):
        generated = model.generate(inputs, **settings)
    assert torch.equal(generated, surgery.generate(**inputs, **settings))


@torch.no_grad()
def test_no_head_changes_nothing_and_lists_add_up():
    model, inputs = HookedMLLM(tiny.build("llava")), tiny.batch("llava")
    assert ablate([]) == []
    assert torch.equal(model.run_with_hooks(inputs, fwd_hooks=ablate([])), model(inputs))
    apart = [hook for head in HeadSet.parse(HEADS) for hook in ablate([head])]
    together = model.run_with_hooks(inputs, fwd_hooks=ablate(HeadSet.parse(HEADS)))
    assert torch.equal(model.run_with_hooks(inputs, fwd_hooks=apart), together)
    with model.hooks(fwd_hooks=ablate([Head(0, 1)])), model.hooks(fwd_hooks=ablate(HeadSet.parse("L2H0 L2H3"))):
        assert torch.equal(model(inputs), together)


@torch.no_grad()
@pytest.mark.parametrize("by_role", [False, True])
def test_means_are_those_of_a_loop_over_samples(model: Any, by_role: bool):
    means = mean_activations(model, samples(), by_role=by_role, batch_size=2).values
    for layer in range(3):
        found, roles = [], []
        for sample in samples():
            inputs = model.prepare(list(sample.images), sample.question)
            found.append(model.run_with_cache(inputs)[1]["z", layer][0])
            roles.append(inputs.tokens.role[0])
        z, role = torch.cat(found), torch.cat(roles)
        for r in Role if by_role else [0]:
            expected = z[role == r].mean(0) if by_role else z.mean(0)
            assert_close(means[f"blocks.{layer}.attn.hook_z"][0, r], expected, atol=1e-4, rtol=1e-4, equal_nan=True)


@torch.no_grad()
def test_mean_ablation_writes_the_means(model: Any):
    means, by_role = mean_activations(model, samples()), mean_activations(model, samples(), by_role=True)
    inputs = model.prepare([list(s.images) for s in samples(2)], [s.question for s in samples(2)])
    _, plain = model.run_with_cache(inputs)
    for measured in (means, by_role):
        with model.hooks(fwd_hooks=ablate(HeadSet.parse(HEADS), "mean", measured, positions=~inputs.tokens.padding)):
            _, cache = model.run_with_cache(inputs)
        kept = ~inputs.tokens.padding
        role = inputs.tokens.role[kept] if measured is by_role else 0
        for layer in range(3):
            for head in range(4):
                z = cache["z", layer][kept][:, head]
                if f"L{layer}H{head}" in HEADS.split(", "):
                    expected = measured.values[f"blocks.{layer}.attn.hook_z"][0, role, head]
                    assert torch.equal(z, expected.expand_as(z))
                elif layer == 0:
                    assert torch.equal(z, plain["z", layer][kept][:, head])


@torch.no_grad()
def test_resampled_outputs_are_outputs_of_the_same_role(model: Any):
    drawn = resample_activations(model, samples(), by_role=True)
    found: dict[int, list[torch.Tensor]] = {role: [] for role in Role}
    for sample in samples():
        inputs = model.prepare(list(sample.images), sample.question)
        z = model.run_with_cache(inputs)[1]["z", 1][0, :, 2]
        for role in Role:
            found[role].append(z[inputs.tokens.role[0] == role])
    inputs = model.prepare([list(s.images) for s in samples(2)], [s.question for s in samples(2)])
    hooks = ablate([Head(1, 2)], "resample", drawn, positions=~inputs.tokens.padding)
    with model.hooks(fwd_hooks=hooks):
        z = model.run_with_cache(inputs)[1]["z", 1][:, :, 2]
        again = model.run_with_cache(inputs)[1]["z", 1][:, :, 2]
    assert torch.equal(z, again)
    for role in (Role.QUESTION, Role.IMAGE, Role.STRUCTURAL):
        here = z[inputs.tokens.role == role]
        distance = torch.cdist(here, torch.cat(found[role]), compute_mode="donot_use_mm_for_euclid_dist")
        assert distance.amin(1).max() < 1e-3
        assert len(distance.argmin(1).unique()) > 1


# --- where and when -------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("phase", ["prefill", "decode", "both"])
@pytest.mark.parametrize("positions", [None, "question"])
def test_an_ablation_acts_where_and_when_it_says(model: Any, phase: Any, positions: Any):
    """Against a hook written by hand, which knows the prompt by its length."""
    if phase == "decode" and positions:
        return
    inputs = model.prepare([list(s.images) for s in samples(2)], [s.question for s in samples(2)])
    chosen = inputs.tokens.question if positions else torch.ones_like(inputs.tokens.question)

    def by_hand(z: torch.Tensor, hook: Any) -> torch.Tensor:
        z = z.clone()
        if z.shape[1] == 1:
            z[:, :, 3] *= phase == "prefill"
        elif phase != "decode":
            z[:, :, 3][chosen] = 0
        return z

    settings: dict[str, Any] = dict(max_new_tokens=6, do_sample=False, output_logits=True, return_dict_in_generate=True)
    with model.hooks(fwd_hooks=[("blocks.1.attn.hook_z", by_hand)]):
        expected = model.generate(inputs, **settings)
    with model.hooks(fwd_hooks=ablate(HeadSet.parse("L1H3"), positions=positions, phase=phase)):
        ablated = model.generate(inputs, **settings)
    plain = model.generate(inputs, **settings)
    assert all(torch.equal(a, b) for a, b in zip(ablated.logits, expected.logits, strict=True))
    assert torch.equal(ablated.logits[0], plain.logits[0]) == (phase == "decode")


@torch.no_grad()
@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize(
    "way", [{}, {"do_sample": True}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}]
)
def test_every_way_of_generating_is_ablated(family: str, way: dict[str, Any]):
    model, inputs, heads = HookedMLLM(tiny.build(family)), tiny.batch(family), HeadSet.parse(HEADS)
    settings = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None} | way
    weights = copy.deepcopy(model.hf_model.state_dict())
    torch.manual_seed(1)
    with zeroed_weights(model, heads):
        expected = model.generate(inputs, **settings)
    torch.manual_seed(1)
    with model.hooks(fwd_hooks=ablate(heads)):
        assert torch.equal(model.generate(inputs, **settings), expected)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.hf_model.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_queries_of_zero_and_even_logits_look_everywhere_alike(family: str):
    model, inputs = HookedMLLM(tiny.build(family)), tiny.batch(family)
    rows = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    rows[:, -4:] = True
    _, plain = model.run_with_cache(inputs)
    logits = []
    for how in ("zero_query", "uniform"):
        with model.hooks(fwd_hooks=ablate([Head(1, 2)], how, positions=rows)):
            out, cache = model.run_with_cache(inputs)
        logits.append(out)
        for row in range(-4, 0):
            seen = plain["pattern", 1][:, 2, row] > 0
            even = seen / seen.sum(-1, keepdim=True)
            assert_close(cache["pattern", 1][:, 2, row], even, atol=1e-6, rtol=1e-5)
        assert torch.equal(cache["pattern", 1][:, [0, 1, 3]], plain["pattern", 1][:, [0, 1, 3]])
        assert torch.equal(cache["pattern", 1][:, 2, :-4], plain["pattern", 1][:, 2, :-4])
    real = inputs["attention_mask"].bool()
    assert_close(logits[0][real], logits[1][real], atol=1e-4, rtol=1e-4)


# --- edges -----------------------------------------------------------------------------------------------------------


def some_positions(inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries at the end, keys in the middle; the second sample has fewer of both."""
    queries, keys = torch.zeros(2, *inputs["input_ids"].shape, dtype=torch.bool)
    queries[0, -5:], queries[1, -3:-1] = True, True
    keys[0, 5:9], keys[1, 6:7] = True, True
    return queries, keys


@torch.no_grad()
@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("kind", ["attention_knockout", "scale", "bias"])
def test_edges_against_whole_patterns_written_by_hand(family: str, kind: str):
    model, inputs = cl.HookedMLLM(tiny.build(family)), tiny.batch(family)
    queries, keys = some_positions(inputs)
    factor = {"attention_knockout": 0.0, "scale": 3.0, "bias": 0.25}[kind]

    def by_hand(pattern: torch.Tensor, hook: Any) -> torch.Tensor:
        edges = (queries[:, :, None] & keys[:, None])[:, None]
        weighed = torch.where(edges, pattern * factor, pattern)
        weighed = weighed / weighed.sum(-1, keepdim=True)
        return torch.cat([pattern[:, :1], weighed[:, 1:2], pattern[:, 2:]], 1)

    expected = model.run_with_hooks(inputs, fwd_hooks=[("blocks.1.attn.hook_pattern", by_hand)])
    heads = [cl.Head(1, 1)]
    hooks = {
        "attention_knockout": lambda: cl.attention_knockout(heads, queries, keys),
        "scale": lambda: cl.scale_attention(heads, queries, keys, factor),
        "bias": lambda: cl.bias_attention(heads, queries, keys, float(np.log(factor))),
    }[kind]()
    real = inputs["attention_mask"].bool()
    assert_close(model.run_with_hooks(inputs, fwd_hooks=hooks)[real], expected[real], atol=2e-5, rtol=1e-4)
    assert not torch.allclose(model(inputs), expected, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_hidden_keys_are_those_that_no_head_and_no_query_sees(family: str):
    model, inputs = cl.HookedMLLM(tiny.build(family)), tiny.batch(family)
    _, keys = some_positions(inputs)
    other = keys.roll(2, 1)
    heads = [head for head in model.heads if head.layer == 1]
    real = inputs["attention_mask"].bool()
    for hooks, hidden in (
        (cl.mask_keys([1], keys), keys),
        (cl.mask_keys([1], keys) + cl.mask_keys([1], other), keys | other),
    ):
        expected = model.run_with_hooks(inputs, fwd_hooks=cl.attention_knockout(heads, None, hidden))
        assert_close(model.run_with_hooks(inputs, fwd_hooks=hooks)[real], expected[real], atol=2e-5, rtol=1e-4)
        assert not torch.allclose(model(inputs), expected, atol=1e-3)
    with pytest.raises(ValueError, match="queries of sample 0 would have nothing left to look at"):
        model.run_with_hooks(inputs, fwd_hooks=cl.mask_keys([1], real))
    assert not any(point.has_hooks() or point.ctx for point in model.hook_points())


@torch.no_grad()
@pytest.mark.parametrize("way", [{}, {"num_beams": 3}])
def test_hidden_keys_stay_hidden_in_generation(model: Any, way: dict[str, Any]):
    inputs = model.prepare([list(s.images) for s in samples(2)], [s.question for s in samples(2)])
    settings = {"max_new_tokens": 5, "do_sample": False, "output_logits": True, "return_dict_in_generate": True} | way
    with model.hooks(fwd_hooks=cl.attention_knockout(model.heads, None, "image")):
        expected = model.generate(inputs, **settings)
    with model.hooks(fwd_hooks=cl.mask_keys(range(3), "image")):
        hidden = model.generate(inputs, **settings)
    assert torch.equal(hidden.sequences, expected.sequences)
    for logits, by_edges in zip(hidden.logits, expected.logits, strict=True):
        assert_close(logits, by_edges, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("way", [{}, {"num_beams": 3}])
def test_knock_outs_in_generation_hold_for_generated_queries(model: Any, way: dict[str, Any]):
    """Against all rows edited by hand in every step."""
    inputs = model.prepare([list(s.images) for s in samples(2)], [s.question for s in samples(2)])
    heads, n = [cl.Head(layer, head) for layer in range(3) for head in range(4)], inputs["input_ids"].shape[1]

    def by_hand(scores: torch.Tensor, hook: Any) -> torch.Tensor:
        keys = inputs.tokens.image.repeat_interleave(len(scores) // 2, 0)[:, None, None]
        queries = inputs.tokens.question.repeat_interleave(len(scores) // 2, 0)[:, None, :, None]
        edges = queries & keys if scores.shape[2] > 1 else keys
        keys_left = torch.nn.functional.pad(edges, (0, scores.shape[-1] - n))
        return scores.masked_fill(keys_left, -torch.inf)

    settings = {"max_new_tokens": 5, "do_sample": False, "output_logits": True, "return_dict_in_generate": True} | way
    with model.hooks(fwd_hooks=[(name, by_hand) for name in model.attn_names("attn_scores")]):
        expected = model.generate(inputs, **settings)
    with model.hooks(fwd_hooks=cl.attention_knockout(heads, "question", "image")):
        cut = model.generate(inputs, **settings)
    assert torch.equal(cut.sequences, expected.sequences)
    for logits, by_hand_logits in zip(cut.logits, expected.logits, strict=True):
        assert_close(logits, by_hand_logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_functions_that_need_different_rows_nest(model: Any):
    """Each sees the rows it asked for, after the edits of those before it, and the edits add up."""
    inputs = model.prepare([list(s.images) for s in samples(2)], [s.question for s in samples(2)])
    tokens, name = inputs.tokens, "blocks.1.attn.hook_pattern"
    first = cl.attention_knockout([cl.Head(1, 1)], "question", "image", phase="prefill")
    second = cl.attention_knockout([cl.Head(1, 1)], tokens.last, "image", phase="prefill")
    together = cl.attention_knockout([cl.Head(1, 1)], tokens.question | tokens.last, "image", phase="prefill")
    seen: list[torch.Tensor] = []
    with model.hooks(fwd_hooks=together):
        expected, whole = model.run_with_cache(inputs)
    with (
        model.hooks(fwd_hooks=first + second),
        model.hooks(fwd_hooks=[(name, lambda p, hook: seen.append(p))], queries=tokens.last),
    ):
        logits, cache = model.run_with_cache(inputs, names_filter=name, queries=tokens.question)
    assert_close(logits[~tokens.padding], expected[~tokens.padding], atol=1e-5, rtol=1e-5)
    for mask, rows in ((tokens.last, seen[0]), (tokens.question, cache[name])):
        real = cl.row_mask(mask)
        assert rows.shape[2] == real.shape[1]
        assert_close(rows.transpose(1, 2)[real], whole[name].transpose(1, 2)[mask], atol=1e-6, rtol=1e-5)
        assert rows.transpose(1, 2)[~real].isnan().all()


@torch.no_grad()
def test_interventions_leave_nothing_behind(model: Any):
    inputs = model.prepare(None, "Which digit is red?")
    expected = model(inputs)
    hooks = cl.ablate([cl.Head(0, 1)]) + cl.attention_knockout([cl.Head(1, 1)], "last", "structural", phase="prefill")
    model.run_with_hooks(inputs, fwd_hooks=hooks)
    everything = ~inputs.tokens.padding
    with pytest.raises(ValueError, match=r"L1H1 would have nothing left to look at in sample 0"):
        model.run_with_hooks(inputs, fwd_hooks=hooks + cl.attention_knockout([cl.Head(1, 1)], "last", everything))
    assert torch.equal(model(inputs), expected)
    assert not any(point.has_hooks() or point.ctx for point in model.hook_points())


# --- mistakes --------------------------------------------------------------------------------------------------------


def test_heads_that_do_not_exist(model: Any):
    inputs, means = model.prepare(None, "Which?"), mean_activations(model, samples(1))
    for heads, has in (("L3H0", "the model has 3 layers of 4 heads"), ("L0H4", "layer 0 has 4 heads")):
        message = f"{heads} does not exist: {has}, counted from zero"
        with pytest.raises(ValueError, match=message):
            model.run_with_hooks(inputs, fwd_hooks=ablate(HeadSet.parse(heads)))
        with pytest.raises(ValueError, match=message):
            model.run_with_hooks(inputs, fwd_hooks=ablate(HeadSet.parse(heads), "mean", means))


def test_what_an_ablation_needs_is_said_before_anything_runs(model: Any):
    with pytest.raises(ValueError, match=r"how='mean' needs instead=mean_activations\(model, samples\)"):
        ablate([Head(0, 0)], "mean")
    with pytest.raises(ValueError, match=r'needs instead=mean_activations\(model, samples, point="q"\)'):
        ablate([Head(0, 0)], "mean_query")
    means, draws = mean_activations(model, samples(2), by_role=True), resample_activations(model, samples(2))
    with pytest.raises(ValueError, match="takes no `instead`"):
        ablate([Head(0, 0)], "zero", means)
    with pytest.raises(ValueError, match="measured by resample_activations at z"):
        ablate([Head(0, 0)], "mean", draws)
    with pytest.raises(ValueError, match="takes no positions of the prompt"):
        ablate([Head(0, 0)], positions="last", phase="decode")
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Which?"}]
    inputs = model.prepare(None, chat)
    with pytest.raises(ValueError, match="nothing was measured for system positions"):
        model.run_with_hooks(inputs, fwd_hooks=ablate([Head(0, 0)], "mean", means))


def test_positions_of_another_prompt(model: Any):
    one, other = model.prepare(None, "Which?"), model.prepare(None, "Which digit is red?")
    for hooks in (
        ablate([Head(0, 0)], positions=other.tokens.question),
        attention_knockout([Head(0, 0)], other.tokens.question, "structural"),
        attention_knockout([Head(0, 0)], "last", other.tokens.question),
    ):
        with pytest.raises(ValueError, match="it belongs to another prompt"):
            model.run_with_hooks(one, fwd_hooks=hooks)
        with pytest.raises(ValueError, match="it belongs to another prompt"), model.hooks(fwd_hooks=hooks):
            model.generate(one, max_new_tokens=1)
    with pytest.raises(ValueError, match="positions='last' needs a token map, and these inputs have none"):
        model.run_with_hooks(dict(one), fwd_hooks=ablate([Head(0, 0)], positions="last"))


@torch.no_grad()
def test_a_cache_made_without_the_intervention(model: Any):
    """In passes over what comes after it, and in generation, which takes the whole prompt again."""
    inputs = model.prepare(None, "Which digit is red?")
    n, more = inputs["input_ids"].shape[1], torch.full((1, 1), 5)
    whole = {
        "input_ids": torch.cat([inputs["input_ids"], more], 1),
        "attention_mask": torch.ones(1, n + 1, dtype=torch.long),
        "position_ids": torch.arange(n + 1)[None],
    }
    rest = whole | {"input_ids": more, "position_ids": torch.full((1, 1), n)}

    def cached() -> dict[str, Any]:
        return {"past_key_values": model.hf_model(**inputs, use_cache=True).past_key_values}

    settings: dict[str, Any] = dict(max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True)
    late = torch.arange(n + 1)[None] == n
    message = f"which is in a cache that was made without it: the first {n} positions"
    for run in (lambda: model(rest | cached()), lambda: model.generate(whole | cached(), **settings)):
        with model.hooks(fwd_hooks=ablate([Head(0, 0)])), pytest.raises(ValueError, match=message):
            run()
    model.run_with_hooks(rest | cached(), fwd_hooks=ablate([Head(0, 0)], positions=late))
    for hooks in (ablate([Head(0, 0)], positions=late), ablate([Head(0, 0)], phase="decode")):
        with model.hooks(fwd_hooks=hooks):
            expected, found = (model.generate(whole | past, **settings) for past in ({}, cached()))
        for logits, other in zip(found.logits, expected.logits, strict=True):
            assert_close(logits, other, atol=1e-5, rtol=1e-5)
        plain = model.generate(whole | cached(), **settings)
        assert not torch.allclose(found.logits[1], plain.logits[1], atol=1e-4)


def test_mistakes_are_said_before_anything_runs(model: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run it: wrong types get there
    inputs, ran = model.prepare(None, "Which?"), []
    watch = model.hf_model.register_forward_pre_hook(lambda *_: ran.append(1))
    heads, other = [cl.Head(0, 0)], model.prepare(None, "Which digit is red?").tokens
    for hooks, message in (
        (cl.ablate([cl.Head(3, 0)]), "L3H0 does not exist"),
        (cl.ablate(heads, point="o_in"), r"hook_o_in': nothing stands between .* hook_z, and their W_O"),
        (cl.ablate(heads, positions=other.question), "positions .* belongs to another prompt"),
        (cl.ablate(heads, positions=inputs.tokens.question[0]), "positions .* belongs to another prompt"),
        (cl.ablate(heads, positions=inputs.tokens.question.long()), r"a boolean mask, .* and is torch\.int64"),  # pyright: ignore[reportArgumentType]
        (cl.ablate(heads, positions="answers"), "positions='answers' is not known; the names are system, "),  # pyright: ignore[reportArgumentType]
        (cl.attention_knockout(heads, "last", other.question), "keys .* belongs to another prompt"),
        (cl.attention_knockout(heads, "last", "picture"), "keys='picture' is not known"),  # pyright: ignore[reportArgumentType]
    ):
        with pytest.raises(ValueError, match=message):
            model.run_with_hooks(inputs, fwd_hooks=hooks)
        with pytest.raises(ValueError, match=message), model.hooks(fwd_hooks=hooks):
            model.generate(inputs, max_new_tokens=1)
    watch.remove()
    assert not ran
