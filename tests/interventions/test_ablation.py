"""Ablations against surgery on the weights and hook functions written in the test."""

import copy
from typing import Any

import jaxtyping
import pytest
import torch
from torch.testing import assert_close

from corelens import (
    Head,
    HeadSet,
    HookedMLLM,
    ablate,
    attention_knockout,
    mean_activations,
    resample_activations,
    zeroed_weights,
)
from corelens.hf.versions import CACHE
from corelens.hooks.positions import Phase, PositionName
from tests.helpers import processors, tiny
from tests.helpers.prompts import sample_prompts
from tests.helpers.questions import samples


@pytest.fixture(scope="module", params=["qwen3_vl", "llava"])
def model(request: pytest.FixtureRequest) -> HookedMLLM:
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
@pytest.mark.parametrize("phase", ["prefill", "decode", "both"])
@pytest.mark.parametrize("positions", [None, "question"])
def test_an_ablation_acts_where_and_when_it_says(model: HookedMLLM, phase: Phase, positions: PositionName | None):
    """Against a hook function that tells the prompt from generated tokens by its length."""
    if phase == "decode" and positions:
        return
    inputs = sample_prompts(model)
    mask = inputs.tokens.question if positions else torch.ones_like(inputs.tokens.question)

    def zero_head(z: torch.Tensor, hook: Any) -> torch.Tensor:
        z = z.clone()
        if z.shape[1] == 1:
            z[:, :, 3] *= phase == "prefill"
        elif phase != "decode":
            z[:, :, 3][mask] = 0
        return z

    settings: dict[str, Any] = dict(max_new_tokens=6, do_sample=False, output_logits=True, return_dict_in_generate=True)
    with model.hooks(fwd_hooks=[("blocks.1.attn.hook_z", zero_head)]):
        expected = model.generate(inputs, **settings)
    with model.hooks(fwd_hooks=ablate(HeadSet.parse("L1H3"), positions=positions, phase=phase)):
        ablated = model.generate(inputs, **settings)
    plain = model.generate(inputs, **settings)
    assert all(torch.equal(a, b) for a, b in zip(ablated.logits, expected.logits, strict=True))
    assert torch.equal(ablated.logits[0], plain.logits[0]) == (phase == "decode")


@torch.no_grad()
@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize(
    "options", [{}, {"do_sample": True}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}]
)
def test_every_way_of_generating_is_ablated(family: str, options: dict[str, Any]):
    model, inputs, heads = HookedMLLM(tiny.build(family)), tiny.batch(family), HeadSet.parse(HEADS)
    settings = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None} | options
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
def test_zero_queries_and_uniform_logits_attend_to_all_keys_alike(family: str):
    model, inputs = HookedMLLM(tiny.build(family)), tiny.batch(family)
    rows = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    rows[:, -4:] = True
    _, plain = model.run_with_cache(inputs)
    logits = []
    for method in ("zero_query", "uniform"):
        with model.hooks(fwd_hooks=ablate([Head(1, 2)], method, positions=rows)):
            ablated_logits, cache = model.run_with_cache(inputs)
        logits.append(ablated_logits)
        for row in range(-4, 0):
            visible = plain["pattern", 1][:, 2, row] > 0
            uniform = visible / visible.sum(-1, keepdim=True)
            assert_close(cache["pattern", 1][:, 2, row], uniform, atol=1e-6, rtol=1e-5)
        assert torch.equal(cache["pattern", 1][:, [0, 1, 3]], plain["pattern", 1][:, [0, 1, 3]])
        assert torch.equal(cache["pattern", 1][:, 2, :-4], plain["pattern", 1][:, 2, :-4])
    real = inputs["attention_mask"].bool()
    assert_close(logits[0][real], logits[1][real], atol=1e-4, rtol=1e-4)


def test_heads_that_do_not_exist(model: HookedMLLM):
    inputs, means = model.prepare(None, "Which?"), mean_activations(model, samples(1))
    for heads, reason in (("L3H0", "the model has 3 layers of 4 heads"), ("L0H4", "layer 0 has 4 heads")):
        message = f"{heads} does not exist: {reason}, counted from zero"
        with pytest.raises(ValueError, match=message):
            model.run_with_hooks(inputs, fwd_hooks=ablate(HeadSet.parse(heads)))
        with pytest.raises(ValueError, match=message):
            model.run_with_hooks(inputs, fwd_hooks=ablate(HeadSet.parse(heads), "mean", means))


def test_what_an_ablation_needs_is_said_before_anything_runs(model: HookedMLLM, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match=r"method='mean' needs reference=mean_activations\(model, samples\)"):
        ablate([Head(0, 0)], "mean")
    with pytest.raises(ValueError, match=r'needs reference=mean_activations\(model, samples, point="q"\)'):
        ablate([Head(0, 0)], "mean_query")
    means, draws = mean_activations(model, samples(2), by_role=True), resample_activations(model, samples(2))
    with pytest.raises(ValueError, match="takes no `reference`"):
        ablate([Head(0, 0)], "zero", means)
    with pytest.raises(ValueError, match="measured by resample_activations at z"):
        ablate([Head(0, 0)], "mean", draws)
    with pytest.raises(ValueError, match="takes no positions of the prompt"):
        ablate([Head(0, 0)], positions="last", phase="decode")
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Which?"}]
    inputs = model.prepare(None, chat)
    with pytest.raises(ValueError, match="nothing was measured for system positions"):
        model.run_with_hooks(inputs, fwd_hooks=ablate([Head(0, 0)], "mean", means))
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run it: wrong types get there
    with pytest.raises(ValueError, match=r"method='median' is not known; it is one of zero, mean, .*, uniform"):
        ablate([Head(0, 0)], "median")  # pyright: ignore[reportArgumentType]


def test_positions_of_another_prompt(model: HookedMLLM):
    inputs, other = model.prepare(None, "Which?"), model.prepare(None, "Which digit is red?")
    for hooks in (
        ablate([Head(0, 0)], positions=other.tokens.question),
        attention_knockout([Head(0, 0)], other.tokens.question, "structural"),
        attention_knockout([Head(0, 0)], "last", other.tokens.question),
    ):
        with pytest.raises(ValueError, match="it belongs to another prompt"):
            model.run_with_hooks(inputs, fwd_hooks=hooks)
        with pytest.raises(ValueError, match="it belongs to another prompt"), model.hooks(fwd_hooks=hooks):
            model.generate(inputs, max_new_tokens=1)
    with pytest.raises(ValueError, match="positions='last' needs a token map, and these inputs have none"):
        model.run_with_hooks(dict(inputs), fwd_hooks=ablate([Head(0, 0)], positions="last"))


@torch.no_grad()
def test_a_cache_made_without_the_intervention(model: HookedMLLM):
    """In passes over later positions, and in generation, which takes the whole prompt again."""
    inputs = model.prepare(None, "Which digit is red?")
    n, next_token = inputs["input_ids"].shape[1], torch.full((1, 1), 5)
    all_inputs = {
        "input_ids": torch.cat([inputs["input_ids"], next_token], 1),
        "attention_mask": torch.ones(1, n + 1, dtype=torch.long),
        "position_ids": torch.arange(n + 1)[None],
    }
    last_inputs = all_inputs | {"input_ids": next_token, "position_ids": torch.full((1, 1), n)}

    def cached() -> dict[str, Any]:
        return {CACHE: model.hf_model(**inputs, use_cache=True)[CACHE]}

    settings: dict[str, Any] = dict(max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True)
    late = torch.arange(n + 1)[None] == n
    message = f"which is in a cache that was made without it: the first {n} positions"
    for run in (lambda past: model(last_inputs | past), lambda past: model.generate(all_inputs | past, **settings)):
        past = cached()
        with model.hooks(fwd_hooks=ablate([Head(0, 0)])), pytest.raises(ValueError, match=message):
            run(past)
    model.run_with_hooks(last_inputs | cached(), fwd_hooks=ablate([Head(0, 0)], positions=late))
    for hooks in (ablate([Head(0, 0)], positions=late), ablate([Head(0, 0)], phase="decode")):
        past = cached()
        with model.hooks(fwd_hooks=hooks):
            expected, continued = (model.generate(all_inputs | given, **settings) for given in ({}, past))
        for logits, expected_logits in zip(continued.logits, expected.logits, strict=True):
            assert_close(logits, expected_logits, atol=1e-5, rtol=1e-5)
        plain = model.generate(all_inputs | cached(), **settings)
        assert not torch.allclose(continued.logits[1], plain.logits[1], atol=1e-4)


def test_mistakes_are_said_before_anything_runs(model: HookedMLLM, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run it: wrong types get there
    inputs, passes = model.prepare(None, "Which?"), []
    handle = model.hf_model.register_forward_pre_hook(lambda *_: passes.append(1))
    heads, other = [Head(0, 0)], model.prepare(None, "Which digit is red?").tokens
    for hooks, message in (
        (ablate([Head(3, 0)]), "L3H0 does not exist"),
        (ablate(heads, point="o_in"), r"hook_o_in': nothing stands between .* W_O"),
        (ablate(heads, positions=other.question), "positions .* belongs to another prompt"),
        (ablate(heads, positions=inputs.tokens.question[0]), "positions .* belongs to another prompt"),
        (ablate(heads, positions=inputs.tokens.question.long()), r"a boolean mask, .* and is torch\.int64"),  # pyright: ignore[reportArgumentType]
        (ablate(heads, positions="answers"), "positions='answers' is not known; .* system, "),  # pyright: ignore[reportArgumentType]
        (attention_knockout(heads, "last", other.question), "keys .* belongs to another prompt"),
        (attention_knockout(heads, "last", "picture"), "keys='picture' is not known"),  # pyright: ignore[reportArgumentType]
    ):
        with pytest.raises(ValueError, match=message):
            model.run_with_hooks(inputs, fwd_hooks=hooks)
        with pytest.raises(ValueError, match=message), model.hooks(fwd_hooks=hooks):
            model.generate(inputs, max_new_tokens=1)
    handle.remove()
    assert not passes
