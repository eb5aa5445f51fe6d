"""Plans at work on real architectures, against stock generation under masks over all keys."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.testing import assert_close
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel
from transformers.masking_utils import sdpa_mask

import corelens as cl
from corelens import HookedMLLM, toy
from corelens.heads import Head, HeadSet
from corelens.hooks.attention import AttentionCall
from corelens.sparse import Full, HeadPlan, Off, Streaming, apply, hybrid
from corelens.sparse.cache import HeadSparseCache
from corelens.sparse.resolve import resolve
from tests.helpers.tiny import ARCHITECTURES, IMAGE, NO_GENERATION, PAD, VIDEO, batch, build, generation_inputs

SINK, WINDOW = 2, 5
REFUSED = {
    "blip": "cannot be hooked",
    "git": "cannot be hooked",
    "idefics": "attends to an encoder",
    "internvl_gpt_oss": "asks for `s_aux`",
    "paligemma2": "asks for `softcap`",
    "kosmos-2": "brings a mask of numbers",
    "mistral4": "compressed keys cannot be kept",
    "kimi_k25": "compressed keys cannot be kept",
    "qwen4_exp": "nothing to plan",
    "glm5_next": "nothing to plan",
    "mistral3": "nothing to plan",
    "mistral_large4": "nothing to plan",
    "unlimited_ocr": "nothing to plan",
    "idefics2": "nothing to plan",
    "dots3_note": "nothing to plan",
    "inkling2": "nothing to plan",
    "inkling_mm_model": "nothing to plan",
    "gemma3n": "nothing to plan",
    "gemma4": "nothing to plan",
    "gemma4_unified": "nothing to plan",
    "mllama": "attends to an encoder",
    "florence2": "attends to an encoder",
    "pix2struct": "attends to an encoder",
    "pp_formulanet": "attends to an encoder",
    "t5gemma2": "attends to an encoder",
    "udop": "attends to an encoder",
    "vision-encoder-decoder": "attends to an encoder",
}
UNCACHED = {"kosmos-2.5": "its cached generation counts positions in another way than its passes", "evolla": "no cache"}


def core_of(model: PreTrainedModel) -> HeadSet:
    """One head in each of the last two layers that can be planned."""
    layers = sorted(resolve(HeadPlan({}, Full()), model).layers)
    return HeadSet(tuple(Head(layer, 1 + 2 * (layer == layers[0])) for layer in layers[-2:]))


@contextmanager
def under_masks(model: PreTrainedModel, plan: HeadPlan, text: Tensor | None = None) -> Iterator[None]:
    """Stock passes and caches of a model whose attention masks every head's row by its rule."""
    placed = resolve(plan, model)
    rules = {id(module): placed.layers[layer].rules for layer, module in placed.modules.items()}

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: Any = None, **others: Any
    ):
        if id(module) not in rules:
            return AttentionCall(module, query, key, value, mask, scaling, others).head_outputs(), None
        n_heads, n, total = query.shape[1], query.shape[2], key.shape[2]
        visible = mask.expand(len(query), n_heads, -1, -1).clone()
        q, p = torch.arange(total), torch.arange(total - n, total)
        begin = mask[:, 0, -1].int().argmax(-1)
        for head, rule in enumerate(rules[id(module)]):
            if isinstance(rule, Streaming):
                kept = q < begin[:, None] + rule.sink
                if rule.keep_text and text is not None:
                    kept |= torch.nn.functional.pad(text, (0, total))[:, :total]
                visible[:, head] &= (q > p[:, None] - rule.window) | kept[:, None]
        key, value = (repeat(t, "b kv k d -> b (kv group) k d", group=n_heads // t.shape[1]) for t in (key, value))
        scores = (query @ key.mT).float() * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        pattern = scores.masked_fill(~visible, -torch.inf).softmax(-1).nan_to_num(0)
        for head, rule in enumerate(rules[id(module)]):
            if isinstance(rule, Off):
                pattern[:, head] = 0
        return rearrange(pattern.to(value) @ value, "b head p d -> b p head d").contiguous(), None

    AttentionInterface.register("masked", attention)
    AttentionMaskInterface.register("masked", lambda **k: sdpa_mask(**k | {"allow_is_causal_skip": False}))
    configs = {id(m.config): m.config for m in model.get_decoder().modules() if isinstance(m, PreTrainedModel)}
    before = {name: config._attn_implementation_internal for name, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation_internal = "masked"
        yield
    finally:
        for name, config in configs.items():
            config._attn_implementation_internal = before[name]


def generated(model: Any, inputs: dict[str, Tensor], **settings: Any) -> tuple[Tensor, Tensor, Any]:
    """Sequences, logits of each new token, and the cache."""
    settings = dict(max_new_tokens=8, min_new_tokens=8, do_sample=False) | settings
    own = {name: value.clone() if isinstance(value, Tensor) else value for name, value in inputs.items()}
    torch.manual_seed(0)
    found = model.generate(**own, **settings, output_logits=True, return_dict_in_generate=True)
    return found.sequences, torch.stack(found.logits, 1), found.past_key_values


def words(n: int, seed: int = 5, padding: int = 0) -> dict[str, Tensor]:
    """Two texts, the second with padding before it."""
    ids = torch.randint(3, 400, (2, n), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    ids[1, :padding], mask[1, :padding] = PAD, 0
    return {"input_ids": ids, "attention_mask": mask}


def same_generation(model: Any, plan: HeadPlan, inputs: dict[str, Tensor], **settings: Any) -> Any:
    """Asserts the same tokens and logits, and returns the cache."""
    with under_masks(model, plan):
        tokens, logits, _ = generated(model, inputs, **settings)
    with apply(model, plan, force=True):
        found_tokens, found_logits, cache = generated(model, inputs, **settings)
    assert_close(found_tokens, tokens, rtol=0, atol=0)
    assert_close(found_logits, logits, rtol=1e-4, atol=1e-4)
    return cache


@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if n not in NO_GENERATION])
def test_every_architecture_generates_under_a_plan_as_under_masks_or_is_refused_by_name(name: str):
    model, inputs = build(name), generation_inputs(name, batch(name))
    if name in REFUSED:
        plan = hybrid([], SINK, WINDOW)
        with pytest.raises((TypeError, ValueError), match=REFUSED[name]), apply(model, plan, force=True):
            generated(model, inputs)
        return
    with torch.no_grad():
        stock = model(**inputs).logits
        real = inputs["attention_mask"].bool()
        with apply(model, HeadPlan({}, Full()), force=True):
            assert_close(model(**inputs).logits[real], stock[real], rtol=1e-4, atol=5e-5)
        plan = hybrid(core_of(model), SINK, WINDOW)
        with under_masks(model, plan):
            masked = model(**inputs).logits
        with apply(model, plan, force=True):
            found = model(**inputs).logits
        assert_close(found[real], masked[real], rtol=1e-4, atol=5e-5)
        assert (found - stock)[real].abs().max() > 0.01
        if name not in UNCACHED:
            same_generation(model, plan, inputs, max_new_tokens=3, min_new_tokens=3)


IN_DEPTH = (
    "qwen3_vl", "qwen2_5_vl", "llava", "gemma3", "internvl", "llava_onevision", "qwen3_5", "paligemma", "idefics3",
)  # fmt: skip
"""With multidimensional positions, sliding layers, pictures that look ahead, linear layers, gates."""

MODES: dict[str, dict[str, Any]] = {
    "beams": dict(num_beams=3),
    "several of each": dict(num_beams=3, num_return_sequences=2),
    "sampling": dict(do_sample=True, num_return_sequences=2, top_k=20),
    "long": dict(max_new_tokens=24, min_new_tokens=24),
}


@pytest.mark.parametrize("granularity", ["kv_group", "query"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", IN_DEPTH)
def test_every_way_to_generate_is_generation_under_masks(name: str, mode: str, granularity: Any):
    model = build(name)
    plan = hybrid(core_of(model), SINK, WINDOW, granularity=granularity)
    same_generation(model, plan, generation_inputs(name, batch(name)), **MODES[mode])


def of_two_pictures(name: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every sample once more behind itself, with its picture."""
    n = len(inputs["input_ids"])
    by_sample = {key: value.unflatten(0, (n, -1)) for key, value in inputs.items()}
    twice = {key: value.repeat_interleave(2, 0).flatten(0, 1) for key, value in by_sample.items()}
    for key in ("input_ids", "attention_mask", "mm_token_type_ids"):
        if key in inputs:
            twice[key] = torch.cat([inputs[key], inputs[key]], 1)
    return twice


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_5_vl", "llava", "internvl"])
def test_several_pictures_are_read_under_a_plan(name: str):
    model = build(name)
    inputs = of_two_pictures(name, generation_inputs(name, batch(name, padded=False)))
    for granularity in ("kv_group", "query"):
        same_generation(model, hybrid(core_of(model), SINK, WINDOW, granularity=granularity), inputs)


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_5_vl"])
def test_videos_are_read_under_a_plan(name: str):
    model, inputs = build(name), generation_inputs(name, batch(name))
    inputs["input_ids"] = torch.where(inputs["input_ids"] == IMAGE, VIDEO, inputs["input_ids"])
    inputs["mm_token_type_ids"] *= 2
    inputs["pixel_values_videos"], inputs["video_grid_thw"] = inputs.pop("pixel_values"), inputs.pop("image_grid_thw")
    same_generation(model, hybrid(core_of(model), SINK, WINDOW), inputs)
    with_text = hybrid(core_of(model), 0, 3, text=True)
    text = (inputs["input_ids"] != VIDEO) & inputs["attention_mask"].bool()
    with under_masks(model, with_text, text):
        _, expected, _ = generated(model, inputs)
    with apply(model, with_text, force=True):
        _, found, _ = generated(model, inputs)
    assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("padding", [0, 1, 3, 15])
@pytest.mark.parametrize("chunk", [1, 4, 7, 16])
@pytest.mark.parametrize("name", ["qwen3_vl", "llava", "gemma3"])
def test_prompts_may_come_in_chunks(name: str, chunk: int, padding: int):
    model = build(name)
    plan = hybrid(core_of(model), SINK, WINDOW)
    inputs = words(18, padding=padding)
    with under_masks(model, plan):
        tokens, logits, _ = generated(model, inputs)
    with apply(model, plan, force=True):
        found_tokens, found_logits, _ = generated(model, inputs, prefill_chunk_size=chunk)
    assert_close(found_tokens, tokens, rtol=0, atol=0)
    assert_close(found_logits, logits, rtol=1e-4, atol=1e-4)


def test_pictures_may_come_in_chunks():
    model = build("qwen3_vl")
    plan = hybrid(core_of(model), SINK, WINDOW, text=True)
    inputs = generation_inputs("qwen3_vl", batch("qwen3_vl"))
    with apply(model, plan, force=True):
        tokens, logits, _ = generated(model, inputs)
        found_tokens, found_logits, _ = generated(model, inputs, prefill_chunk_size=5)
    assert_close(found_tokens, tokens, rtol=0, atol=0)
    assert_close(found_logits, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("granularity", ["kv_group", "query"])
@pytest.mark.parametrize("name", ["qwen3_vl", "llava", "internvl"])
def test_text_of_the_prompt_may_stay_in_sight(name: str, granularity: Any):
    model, inputs = build(name), generation_inputs(name, batch(name))
    plan = hybrid(core_of(model), 0, 3, text=True, granularity=granularity)
    text = (inputs["input_ids"] != IMAGE) & inputs["attention_mask"].bool()
    with under_masks(model, plan, text):
        tokens, logits, _ = generated(model, inputs)
    with under_masks(model, plan):
        _, without_text, _ = generated(model, inputs)
    with apply(model, plan, force=True):
        found_tokens, found_logits, _ = generated(model, inputs)
    assert_close(found_tokens, tokens, rtol=0, atol=0)
    assert_close(found_logits, logits, rtol=1e-4, atol=1e-4)
    assert (logits - without_text).abs().max() > 0.01


@pytest.mark.parametrize("name", ["qwen3_vl", "llava", "gemma3"])
def test_a_conversation_goes_on_from_its_cache(name: str):
    model, turn = build(name), words(6, seed=8)["input_ids"]
    plan = hybrid(core_of(model), SINK, WINDOW)
    inputs = generation_inputs(name, batch(name, padded=False))
    with apply(model, plan, force=True) as applied:
        cache = applied.cache()
        first, _, _ = generated(model, inputs, past_key_values=cache)
        ids = torch.cat([first, turn], 1)
        asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        tokens, logits, _ = generated(model, asked, past_key_values=cache)
        types = {n: torch.nn.functional.pad(v, (0, 14)) for n, v in inputs.items() if n.endswith("type_ids")}
        anew_tokens, anew_logits, _ = generated(model, inputs | asked | types)
    assert_close(tokens, anew_tokens, rtol=0, atol=0)
    assert_close(logits, anew_logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", IN_DEPTH)
def test_a_full_plan_generates_what_the_model_generates(name: str):
    model, inputs = build(name), generation_inputs(name, batch(name))
    tokens, logits, _ = generated(model, inputs)
    with apply(model, HeadPlan({}, Full()), force=True):
        found_tokens, found_logits, _ = generated(model, inputs)
    assert_close(found_tokens, tokens, rtol=0, atol=0)
    assert_close(found_logits, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cache_holds_as_many_bytes_as_the_plan_says(dtype: torch.dtype):
    model = build("qwen3_vl", dtype=dtype)
    plan = hybrid(core_of(model), SINK, WINDOW)
    with apply(model, plan, force=True) as applied:
        _, _, cache = generated(model, words(40))
        assert cache.nbytes == 2 * applied.plan.bytes(48)
        assert applied.plan.full_cache_bytes(48) == 48 * 3 * 2 * 2 * 16 * dtype.itemsize
        assert f"a sequence holds {applied.plan.bytes(48) / 1e6:.1f} MB" in applied.plan.summary(48)


def test_heads_that_are_off_are_heads_that_are_ablated():
    model, inputs = build("qwen3_vl"), batch("qwen3_vl")
    heads = HeadSet.parse("L0H1, L2H0, L2H1, L2H3")
    hooked = HookedMLLM(model)
    with hooked.hooks(cl.ablate(heads, "zero")):
        ablated = hooked(inputs)
    with torch.no_grad(), apply(hooked, HeadPlan(dict.fromkeys(heads, Off()), Full())):
        off = hooked(inputs)
    real = inputs["attention_mask"].bool()
    assert_close(off[real], ablated[real].detach(), rtol=1e-4, atol=5e-5)


def test_a_hooked_model_answers_under_a_plan(toy_model: Any):
    sample = next(iter(toy.scenes(1, seed=3)))
    inputs = toy_model.prepare(sample.images, sample.question)
    plain = toy_model.answer(inputs, max_new_tokens=4)
    with apply(toy_model, HeadPlan({}, Full()), force=True):
        assert toy_model.answer(inputs, max_new_tokens=4) == plain
    with apply(toy_model, hybrid([], sink=1, window=2), force=True):
        assert toy_model.answer(inputs, max_new_tokens=4) != plain
    assert toy_model.answer(inputs, max_new_tokens=4) == plain


def test_decoding_with_the_static_cache_compiles_into_one_graph():
    run = subprocess.run(
        [sys.executable, "-m", "tests.helpers.compiled_decoding"], capture_output=True, text=True, check=True
    )
    found = json.loads(run.stdout)
    assert found["graphs"] == 1
    assert found["difference"] < 1e-4


def test_right_padding_assisted_decoding_and_other_caches_are_refused_by_name():
    model, inputs = build("llava"), words(12)
    plan = hybrid(core_of(model), SINK, WINDOW)
    right = inputs | {"attention_mask": inputs["attention_mask"].clone()}
    right["attention_mask"][1, -2:] = 0
    with apply(model, plan, force=True) as applied:
        for said, settings in {
            "assistant_model takes tokens back": dict(assistant_model=build("llava")),
            "prompt_lookup_num_tokens takes tokens back": dict(prompt_lookup_num_tokens=2),
            "cache_implementation='quantized'": dict(cache_implementation="quantized"),
            "past_key_values was not made for this plan": dict(past_key_values=DynamicCache()),
        }.items():
            with pytest.raises(ValueError, match=said):
                model.generate(**inputs, **settings)
        with pytest.raises(ValueError, match="padding on the left"), torch.no_grad():
            model(**right)
        with pytest.raises(ValueError, match="static cache with room for 4 positions cannot hold 12"):
            model.generate(**inputs, past_key_values=applied.cache(4, static=True), max_new_tokens=1)
        with pytest.raises(RuntimeError, match="for inference"):
            model(**inputs)
        other = applied.cache()
    with apply(model, hybrid([], SINK, WINDOW)), pytest.raises(ValueError, match="not made for this plan"):
        model.generate(**inputs, past_key_values=other)


def test_masks_of_one_s_own_are_followed_where_they_say_yes_or_no():
    model, inputs = build("llava"), words(12)
    plan = hybrid(core_of(model), SINK, WINDOW)
    own = torch.ones(12, 12, dtype=torch.bool).tril().expand(2, 1, -1, -1)
    with torch.no_grad(), apply(model, plan):
        assert_close(model(inputs["input_ids"], attention_mask=own).logits, model(inputs["input_ids"]).logits)
        with pytest.raises(ValueError, match="takes yes or no"):
            model(inputs["input_ids"], attention_mask=own.float())


def test_plans_and_hooks_do_not_meet():
    hooked = HookedMLLM(build("llava"))
    plan = hybrid(core_of(hooked.hf_model), SINK, WINDOW)
    with apply(hooked, plan, force=True):
        with pytest.raises(RuntimeError, match="already at work"), apply(hooked, plan):
            pass
        with pytest.raises(RuntimeError, match="cannot be hooked"), hooked.hooks(cl.ablate([Head(0, 1)], "zero")):
            hooked(batch("llava"))


def test_a_plan_leaves_no_trace_after_success_or_failure():
    model, inputs = build("llava"), batch("llava")
    before = model(**inputs).logits
    with pytest.raises(ZeroDivisionError), apply(model, hybrid(core_of(model), SINK, WINDOW)):
        raise ZeroDivisionError
    with pytest.raises(ValueError, match="L9H9"), apply(model, hybrid([Head(9, 9)])):
        pass
    assert torch.equal(model(**inputs).logits, before)
    assert "generate" not in model.__dict__
    assert not any("_corelens_planned" in module.__dict__ for module in model.modules())


def test_where_a_plan_does_not_pay_it_says_so_and_generates_without():
    model, inputs = build("llava"), words(12)
    tokens, logits, _ = generated(model, inputs)
    plan = hybrid(core_of(model), 4, 60)
    with apply(model, plan) as applied:
        with pytest.warns(UserWarning, match=r"This plan is predicted to pay from about .* the prompt has 12."):
            found_tokens, found_logits, cache = generated(model, inputs)
        assert torch.equal(found_tokens, tokens)
        assert torch.equal(found_logits, logits)
        assert not isinstance(cache, HeadSparseCache)
        # Where it pays, nothing is said, and it is followed.
        _, _, cache = generated(model, words(applied._pays_from or 0))
        assert isinstance(cache, HeadSparseCache)
    with apply(model, HeadPlan({}, Full())), pytest.warns(UserWarning, match="to pay at no length"):
        generated(model, inputs)
