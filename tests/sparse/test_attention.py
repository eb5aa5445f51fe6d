"""Head outputs under a plan on real architectures, against stock generation under masks over all keys."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import DynamicCache

import corelens as cl
from corelens import HookedMLLM
from corelens.heads import HeadSet
from corelens.hf.versions import CACHE
from corelens.sparse import Full, HeadPlan, Off, StreamingBlocks, TopBlocks, apply, hybrid
from corelens.sparse.plan import Granularity
from tests.helpers.masked_generation import (
    SINK,
    WINDOW,
    assert_same_generation,
    core_heads,
    generate,
    masked_attention,
    random_texts,
)
from tests.helpers.tiny import ARCHITECTURES, IMAGE, NO_GENERATION, VIDEO, batch, build, generation_inputs

UNSUPPORTED = {
    "blip": "cannot be hooked",
    "git": "cannot be hooked",
    "inkling2_loop": "runs some of its layers",
    "idefics": "attends to an encoder",
    "internvl_gpt_oss": "passes `s_aux`",
    "paligemma2": "passes `softcap`",
    "kosmos-2": "passes an additive mask",
    "mistral4": "compressed keys cannot be stored",
    "kimi_k25": "compressed keys cannot be stored",
    "qwen4_exp": "nothing to plan",
    "glm5_next": "nothing to plan",
    "mistral3": "nothing to plan",
    "mistral_large4": "nothing to plan",
    "unlimited_ocr": "nothing to plan",
    "idefics2": "nothing to plan",
    "dots3_note": "nothing to plan",
    "inkling2": "nothing to plan",
    "hy_v4_vl": "nothing to plan",
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


@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if n not in NO_GENERATION])
def test_every_architecture_generates_under_a_plan_as_under_masks_or_raises_an_error(name: str):
    model, inputs = build(name), generation_inputs(name, batch(name))
    if name in UNSUPPORTED:
        plan = hybrid([], SINK, WINDOW)
        with pytest.raises((TypeError, ValueError), match=UNSUPPORTED[name]), apply(model, plan, force=True):
            generate(model, inputs)
        return
    with torch.no_grad():
        stock = model(**inputs).logits
        real = inputs["attention_mask"].bool()
        with apply(model, HeadPlan({}, Full()), force=True):
            assert_close(model(**inputs).logits[real], stock[real], rtol=1e-4, atol=5e-5)
        plan = hybrid(core_heads(model), SINK, WINDOW)
        with masked_attention(model, plan):
            expected = model(**inputs).logits
        with apply(model, plan, force=True):
            logits = model(**inputs).logits
        assert_close(logits[real], expected[real], rtol=1e-4, atol=5e-5)
        assert (logits - stock)[real].abs().max() > 0.01
        if name not in UNCACHED:
            assert_same_generation(model, plan, inputs, max_new_tokens=3, min_new_tokens=3)


IN_DEPTH = (
    "qwen3_vl", "qwen2_5_vl", "llava", "gemma3", "internvl", "llava_onevision", "qwen3_5", "paligemma", "idefics3",
)  # fmt: skip
"""With multidimensional positions, sliding layers, bidirectional pictures, linear layers, gates."""

MODES: dict[str, dict[str, Any]] = {
    "beams": dict(num_beams=3),
    "several of each": dict(num_beams=3, num_return_sequences=2),
    "sampling": dict(do_sample=True, num_return_sequences=2, top_k=20),
    "long": dict(max_new_tokens=24, min_new_tokens=24),
}


@pytest.mark.parametrize("granularity", ["kv_group", "query"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", IN_DEPTH)
def test_every_way_to_generate_is_generation_under_masks(name: str, mode: str, granularity: Granularity):
    model = build(name)
    plan = hybrid(core_heads(model), SINK, WINDOW, granularity=granularity)
    assert_same_generation(model, plan, generation_inputs(name, batch(name)), **MODES[mode])


def with_two_pictures(name: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every sample twice in a row in one sequence, with its picture."""
    n = len(inputs["input_ids"])
    by_sample = {key: value.unflatten(0, (n, -1)) for key, value in inputs.items()}
    doubled = {key: value.repeat_interleave(2, 0).flatten(0, 1) for key, value in by_sample.items()}
    for key in ("input_ids", "attention_mask", "mm_token_type_ids"):
        if key in inputs:
            doubled[key] = torch.cat([inputs[key], inputs[key]], 1)
    return doubled


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_5_vl", "llava", "internvl"])
def test_several_pictures_are_read_under_a_plan(name: str):
    model = build(name)
    inputs = with_two_pictures(name, generation_inputs(name, batch(name, padded=False)))
    for granularity in ("kv_group", "query"):
        assert_same_generation(model, hybrid(core_heads(model), SINK, WINDOW, granularity=granularity), inputs)


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen2_5_vl"])
def test_videos_are_read_under_a_plan(name: str):
    model, inputs = build(name), generation_inputs(name, batch(name))
    inputs["input_ids"] = torch.where(inputs["input_ids"] == IMAGE, VIDEO, inputs["input_ids"])
    inputs["mm_token_type_ids"] *= 2
    inputs["pixel_values_videos"], inputs["video_grid_thw"] = inputs.pop("pixel_values"), inputs.pop("image_grid_thw")
    assert_same_generation(model, hybrid(core_heads(model), SINK, WINDOW), inputs)
    text_plan = hybrid(core_heads(model), 0, 3, keep_text=True)
    text = (inputs["input_ids"] != VIDEO) & inputs["attention_mask"].bool()
    with masked_attention(model, text_plan, text):
        _, expected, _ = generate(model, inputs)
    with apply(model, text_plan, force=True):
        _, logits, _ = generate(model, inputs)
    assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("padding", [0, 1, 3, 15])
@pytest.mark.parametrize("chunk", [1, 4, 7, 16])
@pytest.mark.parametrize("name", ["qwen3_vl", "llava", "gemma3"])
def test_prompts_may_come_in_chunks(name: str, chunk: int, padding: int):
    model = build(name)
    plan = hybrid(core_heads(model), SINK, WINDOW)
    inputs = random_texts(18, padding=padding)
    with masked_attention(model, plan):
        expected_tokens, expected_logits, _ = generate(model, inputs)
    with apply(model, plan, force=True):
        tokens, logits, _ = generate(model, inputs, prefill_chunk_size=chunk)
    assert_close(tokens, expected_tokens, rtol=0, atol=0)
    assert_close(logits, expected_logits, rtol=1e-4, atol=1e-4)


def test_pictures_may_come_in_chunks():
    model = build("qwen3_vl")
    plan = hybrid(core_heads(model), SINK, WINDOW, keep_text=True)
    inputs = generation_inputs("qwen3_vl", batch("qwen3_vl"))
    with apply(model, plan, force=True):
        expected_tokens, expected_logits, _ = generate(model, inputs)
        tokens, logits, _ = generate(model, inputs, prefill_chunk_size=5)
    assert_close(tokens, expected_tokens, rtol=0, atol=0)
    assert_close(logits, expected_logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("granularity", ["kv_group", "query"])
@pytest.mark.parametrize("name", ["qwen3_vl", "llava", "internvl"])
def test_streaming_heads_may_keep_the_text_of_the_prompt(name: str, granularity: Granularity):
    model, inputs = build(name), generation_inputs(name, batch(name))
    plan = hybrid(core_heads(model), 0, 3, keep_text=True, granularity=granularity)
    text = (inputs["input_ids"] != IMAGE) & inputs["attention_mask"].bool()
    with masked_attention(model, plan, text):
        expected_tokens, expected_logits, _ = generate(model, inputs)
    with masked_attention(model, plan):
        _, without_text, _ = generate(model, inputs)
    with apply(model, plan, force=True):
        tokens, logits, _ = generate(model, inputs)
    assert_close(tokens, expected_tokens, rtol=0, atol=0)
    assert_close(logits, expected_logits, rtol=1e-4, atol=1e-4)
    assert (expected_logits - without_text).abs().max() > 0.01


@pytest.mark.parametrize("name", IN_DEPTH)
def test_a_full_plan_generates_what_the_model_generates(name: str):
    model, inputs = build(name), generation_inputs(name, batch(name))
    expected_tokens, expected_logits, _ = generate(model, inputs)
    with apply(model, HeadPlan({}, Full()), force=True):
        tokens, logits, _ = generate(model, inputs)
    assert_close(tokens, expected_tokens, rtol=0, atol=0)
    assert_close(logits, expected_logits, rtol=1e-4, atol=1e-4)


def test_heads_that_are_off_are_heads_that_are_ablated():
    model, inputs = build("qwen3_vl"), batch("qwen3_vl")
    heads = HeadSet.parse("L0H1, L2H0, L2H1, L2H3")
    hooked = HookedMLLM(model)
    with hooked.hooks(cl.ablate(heads, "zero")):
        ablated = hooked(inputs)
    with torch.no_grad(), apply(hooked, HeadPlan(dict.fromkeys(heads, Off()), Full())):
        logits = hooked(inputs)
    real = inputs["attention_mask"].bool()
    assert_close(logits[real], ablated[real].detach(), rtol=1e-4, atol=5e-5)


def test_heads_that_read_all_blocks_are_full_heads():
    model, inputs = build("llava"), batch("llava")
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        expected = model(**inputs).logits[real]
        with apply(model, HeadPlan({}, TopBlocks(1.0))):
            assert_close(model(**inputs).logits[real], expected, rtol=1e-4, atol=5e-5)


BLOCKS = StreamingBlocks(sink=1, window=2, block=4)


def block_plan(model: Any, granularity: Granularity = "query") -> HeadPlan:
    return HeadPlan(dict.fromkeys(core_heads(model), Full()), BLOCKS, granularity)


@pytest.mark.parametrize("name", IN_DEPTH)
def test_heads_that_stream_blocks_generate_as_under_masks(name: str):
    model, inputs = build(name), generation_inputs(name, batch(name))
    assert_same_generation(model, block_plan(model), inputs)
    assert_same_generation(model, block_plan(model, "kv_group"), inputs, num_beams=3)


@pytest.mark.parametrize("padding", [0, 3, 15])
@pytest.mark.parametrize("chunk", [2, 8, 11])
@pytest.mark.parametrize("name", ["qwen3_vl", "gemma3"])
def test_heads_that_stream_blocks_read_prompts_in_chunks(name: str, chunk: int, padding: int):
    model, inputs = build(name), random_texts(26, padding=padding)
    plan = block_plan(model)
    with masked_attention(model, plan):
        expected_tokens, expected_logits, _ = generate(model, inputs)
    _, stock_logits, _ = generate(model, inputs)
    with apply(model, plan, force=True):
        tokens, logits, _ = generate(model, inputs, prefill_chunk_size=chunk)
    assert_close(tokens, expected_tokens, rtol=0, atol=0)
    assert_close(logits, expected_logits, rtol=1e-4, atol=1e-4)
    assert (logits - stock_logits).abs().max() > 0.01


@pytest.mark.parametrize("name", ["qwen3_vl", "llava"])
def test_heads_that_stream_blocks_decode_as_the_model_does(name: str):
    """Steps from the cache that the plan filled are stock steps from the same keys and values."""
    model, inputs = build(name), random_texts(26, padding=3)
    with torch.no_grad(), apply(model, block_plan(model), force=True) as active:
        cache = active.cache()
        model(**inputs, **{CACHE: cache})
        assert cache.nbytes == 2 * active.plan.full_cache_bytes(26)
        stock = DynamicCache(config=model.config)
        for layer, cached in enumerate(cache.layers):
            stock.update(*(tensor[:, :, :26].clone() for tensor in cached.full_cache), layer)
        step = {"attention_mask": torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)}
        step |= {"input_ids": inputs["input_ids"][:, :1]}
        logits = model(**step, **{CACHE: cache}).logits
    with torch.no_grad():
        assert_close(logits, model(**step, **{CACHE: stock}).logits, rtol=1e-4, atol=1e-4)


def test_boolean_masks_are_followed_and_additive_masks_are_an_error():
    model, inputs = build("llava"), random_texts(12)
    plan = hybrid(core_heads(model), SINK, WINDOW)
    mask = torch.ones(12, 12, dtype=torch.bool).tril().expand(2, 1, -1, -1)
    with torch.no_grad(), apply(model, plan):
        assert_close(model(inputs["input_ids"], attention_mask=mask).logits, model(inputs["input_ids"]).logits)
        with pytest.raises(ValueError, match="takes boolean masks"):
            model(inputs["input_ids"], attention_mask=mask.float())
