"""Applying a plan: generate, its caches and conversations, what it excludes, and what is left afterwards."""

import json
import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close
from transformers import DynamicCache

import corelens as cl
from corelens import HookedMLLM, toy
from corelens.heads import Head
from corelens.hf.versions import CACHE
from corelens.sparse import Full, HeadPlan, apply, hybrid
from corelens.sparse.cache import HeadSparseCache
from tests.helpers.masked_generation import SINK, WINDOW, core_heads, generate, random_texts
from tests.helpers.tiny import batch, build, generation_inputs


def test_a_hooked_model_answers_under_a_plan(toy_model: HookedMLLM):
    sample = next(iter(toy.scenes(1, seed=3)))
    inputs = toy_model.prepare(sample.images, sample.question)
    plain = toy_model.answer(inputs, max_new_tokens=4)
    with apply(toy_model, HeadPlan({}, Full()), force=True):
        assert toy_model.answer(inputs, max_new_tokens=4) == plain
    with apply(toy_model, hybrid([], sink=1, window=2), force=True):
        assert toy_model.answer(inputs, max_new_tokens=4) != plain
    assert toy_model.answer(inputs, max_new_tokens=4) == plain


@pytest.mark.parametrize("name", ["qwen3_vl", "llava", "gemma3"])
def test_a_conversation_goes_on_from_its_cache(name: str):
    model, turn = build(name), random_texts(6, seed=8)["input_ids"]
    plan = hybrid(core_heads(model), SINK, WINDOW)
    inputs = generation_inputs(name, batch(name, padded=False))
    with apply(model, plan, force=True) as active:
        cache = active.cache()
        first, _, _ = generate(model, inputs, **{CACHE: cache})
        ids = torch.cat([first, turn], 1)
        longer = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        tokens, logits, _ = generate(model, longer, **{CACHE: cache})
        types = {n: torch.nn.functional.pad(v, (0, 14)) for n, v in inputs.items() if n.endswith("type_ids")}
        expected_tokens, expected_logits, _ = generate(model, inputs | longer | types)
    assert_close(tokens, expected_tokens, rtol=0, atol=0)
    assert_close(logits, expected_logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cache_holds_as_many_bytes_as_the_plan_says(dtype: torch.dtype):
    model = build("qwen3_vl", dtype=dtype)
    plan = hybrid(core_heads(model), SINK, WINDOW)
    with apply(model, plan, force=True) as active:
        _, _, cache = generate(model, random_texts(40))
        assert cache.nbytes == 2 * active.plan.bytes(48)
        assert active.plan.full_cache_bytes(48) == 48 * 3 * 2 * 2 * 16 * dtype.itemsize
        assert f"a sequence holds {active.plan.bytes(48) / 1e6:.1f} MB" in active.plan.summary(48)


def test_decoding_with_the_static_cache_compiles_into_one_graph():
    process = subprocess.run(
        [sys.executable, "-m", "tests.helpers.compiled_decoding"], capture_output=True, text=True, check=True
    )
    result = json.loads(process.stdout)
    assert result["graphs"] == 1
    assert result["difference"] < 1e-4


def test_right_padding_assisted_decoding_and_other_caches_raise_errors():
    model, inputs = build("llava"), random_texts(12)
    plan = hybrid(core_heads(model), SINK, WINDOW)
    right = inputs | {"attention_mask": inputs["attention_mask"].clone()}
    right["attention_mask"][1, -2:] = 0
    with apply(model, plan, force=True) as active:
        for message, settings in {
            "assistant_model rolls tokens back": dict(assistant_model=build("llava")),
            "prompt_lookup_num_tokens rolls tokens back": dict(prompt_lookup_num_tokens=2),
            "cache_implementation='quantized'": dict(cache_implementation="quantized"),
            "cache was not made for the plan": {CACHE: DynamicCache()},
        }.items():
            with pytest.raises(ValueError, match=message):
                model.generate(**inputs, **settings)
        with pytest.raises(ValueError, match="padding on the left"), torch.no_grad():
            model(**right)
        with pytest.raises(ValueError, match="static cache with room for 4 positions cannot hold 12"):
            model.generate(**inputs, **{CACHE: active.cache(4, static=True)}, max_new_tokens=1)
        with pytest.raises(RuntimeError, match="for inference"):
            model(**inputs)
        other = active.cache()
    with apply(model, hybrid([], SINK, WINDOW)), pytest.raises(ValueError, match="not made for the plan"):
        model.generate(**inputs, **{CACHE: other})


def test_plans_and_hooks_exclude_each_other():
    hooked = HookedMLLM(build("llava"))
    plan = hybrid(core_heads(hooked.hf_model), SINK, WINDOW)
    with apply(hooked, plan, force=True):
        with pytest.raises(RuntimeError, match="already active"), apply(hooked, plan):
            pass
        with pytest.raises(RuntimeError, match="cannot be hooked"), hooked.hooks(cl.ablate([Head(0, 1)], "zero")):
            hooked(batch("llava"))


def test_a_plan_leaves_no_trace_after_success_or_failure():
    model, inputs = build("llava"), batch("llava")
    logits = model(**inputs).logits
    with pytest.raises(ZeroDivisionError), apply(model, hybrid(core_heads(model), SINK, WINDOW)):
        raise ZeroDivisionError
    with pytest.raises(ValueError, match="L9H9"), apply(model, hybrid([Head(9, 9)])):
        pass
    assert torch.equal(model(**inputs).logits, logits)
    assert "generate" not in model.__dict__
    assert not any("_corelens_planned" in module.__dict__ for module in model.modules())


def test_where_a_plan_does_not_pay_generate_warns_and_does_without():
    model, inputs = build("llava"), random_texts(12)
    expected_tokens, expected_logits, _ = generate(model, inputs)
    plan = hybrid(core_heads(model), 4, 60)
    with apply(model, plan) as active:
        with pytest.warns(UserWarning, match=r"This plan is predicted to pay from about .* the prompt has 12."):
            tokens, logits, cache = generate(model, inputs)
        assert torch.equal(tokens, expected_tokens)
        assert torch.equal(logits, expected_logits)
        assert not isinstance(cache, HeadSparseCache)
        # Where it pays, there is no warning, and it is followed.
        _, _, cache = generate(model, random_texts(active._pays_from or 0))
        assert isinstance(cache, HeadSparseCache)
    with apply(model, HeadPlan({}, Full())), pytest.warns(UserWarning, match="to pay at no length"):
        generate(model, inputs)
