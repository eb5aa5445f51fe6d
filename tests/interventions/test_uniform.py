"""Uniform attention against algorithm 2 of arXiv 2606.05843 on the model's own attention, and its causal form."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

import corelens as cl
from corelens import HeadSet, HookedMLLM, ablate, toy
from corelens.hooks.attention import AttentionCall
from tests.helpers import tiny
from tests.helpers.processors import build as build_processor
from tests.helpers.prompts import answered_prompts, sample_prompts

HEADS = HeadSet.parse("L0H1, L1H2, L2H0, L2H3")
FAMILIES = (*tiny.FAMILIES, "paligemma2", "cohere_compass", "internvl_gpt_oss")
"""Plain, sliding windows (gemma3, cohere_compass, gpt_oss), soft caps (paligemma2) and sinks (gpt_oss)."""


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def heads_of_modules(hf_model: PreTrainedModel, heads: HeadSet) -> dict[nn.Module, list[int]]:
    layers = hf_model.get_decoder().layers
    return {layers[layer].self_attn: numbers for layer, numbers in heads.by_layer().items()}


@contextmanager
def eager_algorithm_2(hf_model: PreTrainedModel, heads: HeadSet) -> Iterator[None]:
    """Hugging Face's eager attention, in which the masked logits of some heads are zero before the softmax."""
    softmax, now = nn.functional.softmax, []

    def with_zero_logits(logits: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if now:
            module, numbers = now[-1]
            logits = logits.clone()
            if (sinks := getattr(module, "sinks", None)) is None:
                logits[:, numbers] = 0
            else:  # the maximum was subtracted from logits and sinks
                sinks = sinks[numbers][None, :, None, None]
                logits[:, numbers, :, :-1] = logits[:, numbers, :, -1:] - sinks
        return softmax(logits, *args, **kwargs)

    handles = []
    for module, numbers in heads_of_modules(hf_model, heads).items():
        handles.append(
            module.register_forward_pre_hook(lambda module, _, numbers=numbers: now.append((module, numbers)))
        )
        handles.append(module.register_forward_hook(lambda *_: now.pop() and None))
    try:
        with patch.object(nn.functional, "softmax", with_zero_logits):
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def looped_algorithm_2(hf_model: PreTrainedModel, heads: HeadSet) -> Iterator[None]:
    """The model's fused attention, in which some heads are written row by row: softmax(0 ... 0) V."""
    masked = heads_of_modules(hf_model, heads)

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: Any = None, **kwargs: Any
    ):
        outputs = AttentionCall(module, query, key, value, mask, scaling, kwargs).head_outputs()
        n_heads, n_rows, n_keys = query.shape[1], query.shape[2], key.shape[2]
        sinks = kwargs.get("s_aux")
        for head in masked.get(module, []):
            logits = (
                torch.zeros(n_keys)
                if sinks is None
                else torch.cat([torch.zeros(n_keys), sinks[head : head + 1].float()])
            )
            weights = logits.softmax(-1)[:n_keys]
            for row in range(n_rows):
                outputs[:, row, head] = (weights @ value[:, head * value.shape[1] // n_heads].float()).to(outputs)
        return outputs, None

    AttentionInterface.register("listing", attention)
    AttentionMaskInterface.register("listing", sdpa_mask)
    configs = {id(m.config): m.config for m in hf_model.get_decoder().modules() if isinstance(m, PreTrainedModel)}
    previous = {name: config._attn_implementation_internal for name, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation_internal = "listing"
        yield
    finally:
        for name, config in configs.items():
            config._attn_implementation_internal = previous[name]


def generated_logits(model: Any, inputs: dict[str, Tensor], **settings: Any) -> Tensor:
    settings = dict(max_new_tokens=12, do_sample=False, eos_token_id=None) | settings
    output = model.generate(**inputs, **settings, output_logits=True, return_dict_in_generate=True)
    return torch.stack(output.logits, 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_keys_are_algorithm_2_on_eager_attention(family: str):
    """In the prompt, and in decoding beyond sliding windows; without padding, where fused attention is empty."""
    model, eager = HookedMLLM(tiny.build(family)), tiny.build(family, attention="eager")
    inputs = tiny.generation_inputs(family, tiny.batch(family, padded=False))
    with eager_algorithm_2(eager, HEADS):
        expected, expected_logits = eager(**inputs).logits, generated_logits(eager, inputs)
    plain = model(inputs)
    with model.hooks(fwd_hooks=ablate(HEADS, "uniform_all_keys")):
        assert_close(model(inputs), expected, atol=2e-5, rtol=1e-4)
        assert_close(generated_logits(model, inputs), expected_logits, atol=5e-5, rtol=1e-3)
    assert not torch.allclose(plain, expected, atol=1e-2)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["qwen3_vl", "llava", "gemma3", "internvl_gpt_oss"])
def test_padding_counts_as_keys(family: str, side: str):
    """In the first layer, where padding has the same values in eager and fused attention, and in later ones."""
    model, eager = HookedMLLM(tiny.build(family)), tiny.build(family, attention="eager")
    inputs = tiny.generation_inputs(family, tiny.batch(family))
    if side == "right":
        inputs = {
            name: tensor.roll(-3, 1) if tensor.ndim == 2 and name in PADDED else tensor
            for name, tensor in inputs.items()
        }
        inputs["attention_mask"] = inputs["input_ids"].ne(tiny.PAD).long()
        inputs["attention_mask"][0] = 1
    real = inputs["attention_mask"].bool()
    first = HeadSet.parse("L0H1 L0H2")
    with eager_algorithm_2(eager, first):
        expected = eager(**inputs).logits
    assert_close(
        model.run_with_hooks(inputs, fwd_hooks=ablate(first, "uniform_all_keys"))[real],
        expected[real],
        atol=2e-5,
        rtol=1e-4,
    )
    with looped_algorithm_2(model.hf_model, HEADS):
        expected = model.hf_model(**inputs).logits
    assert_close(
        model.run_with_hooks(inputs, fwd_hooks=ablate(HEADS, "uniform_all_keys")), expected, atol=2e-5, rtol=1e-4
    )


PADDED = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")

WAYS: dict[str, dict[str, Any]] = {
    "growing cache": {},
    "no cache": dict(use_cache=False),
    "chunked prefill": dict(prefill_chunk_size=8),
    "beams": dict(num_beams=3),
    "sampling": dict(do_sample=True, num_return_sequences=2),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ["qwen3_vl", "gemma3", "internvl_gpt_oss"])
def test_every_way_of_generating_attends_to_all_keys_of_its_passes(family: str, way: str):
    model, inputs = HookedMLLM(tiny.build(family)), tiny.generation_inputs(family, tiny.batch(family))
    if way == "chunked prefill" and family == "gemma3":
        pytest.skip("its picture attends in both directions")
    torch.manual_seed(1)
    with looped_algorithm_2(model.hf_model, HEADS):
        expected = generated_logits(model.hf_model, inputs, **WAYS[way])
    torch.manual_seed(1)
    with model.hooks(fwd_hooks=ablate(HEADS, "uniform_all_keys")):
        assert_close(generated_logits(model, inputs, **WAYS[way]), expected, atol=5e-5, rtol=1e-3)


@pytest.mark.parametrize("family", ["qwen3_vl", "gemma3", "internvl_gpt_oss", "llama4", "qwen3_5", "mllama"])
def test_a_static_cache_is_the_growing_one(family: str):
    """Its empty positions are no keys."""
    model, inputs = HookedMLLM(tiny.build(family)), tiny.generation_inputs(family, tiny.batch(family))
    for method in ("uniform", "uniform_all_keys"):
        with model.hooks(fwd_hooks=ablate(model.heads[::3], method)):
            growing = generated_logits(model, inputs)
            static = generated_logits(model, inputs, cache_implementation="static")
        assert_close(static, growing, atol=5e-5, rtol=1e-3)


@pytest.mark.parametrize("phase", ["prefill", "decode", "both"])
@pytest.mark.parametrize("positions", [None, "question", "last"])
def test_it_acts_where_and_when_it_says(phase: Any, positions: Any):
    """Against a hook on head outputs that writes the mean of the values which a hook on values showed."""
    if phase == "decode" and positions:
        return
    model = HookedMLLM(tiny.build("qwen3_vl"), build_processor("qwen3_vl"))
    inputs, values = sample_prompts(model), []
    mask = getattr(inputs.tokens, positions) if positions else torch.ones_like(inputs.tokens.question)

    def write_mean(z: Tensor, hook: Any) -> Tensor:
        (value,), z = values, z.clone()
        values.clear()
        mean = value[:, :, 3 * value.shape[2] // z.shape[2]].mean(1)
        if z.shape[1] > 1:
            chosen = mask if phase != "decode" else torch.zeros_like(mask)
        else:
            chosen = torch.full((len(z), 1), phase != "prefill")
        z[:, :, 3] = torch.where(chosen[..., None], mean[:, None], z[:, :, 3])
        return z

    by_hand = [("blocks.1.attn.hook_v", lambda v, hook: values.append(v)), ("blocks.1.attn.hook_z", write_mean)]
    with model.hooks(fwd_hooks=by_hand):
        expected = generated_logits(model, dict(inputs))
    with model.hooks(fwd_hooks=ablate(HeadSet.parse("L1H3"), "uniform_all_keys", positions=positions, phase=phase)):
        output = model.generate(
            inputs,
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
            output_logits=True,
            return_dict_in_generate=True,
        )
    assert_close(torch.stack(output.logits, 1), expected, atol=2e-5, rtol=1e-4)
    assert torch.equal(expected[:, 0], generated_logits(model, dict(inputs))[:, 0]) == (phase == "decode")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["uniform", "uniform_all_keys"])
def test_hooks_get_the_uniform_rows_and_their_outputs(family: str, method: Any):
    """Logits, patterns and outputs agree: z = pattern v; heads that are not ablated are as they were."""
    model, inputs = HookedMLLM(tiny.build(family)), tiny.batch(family)
    _, plain = model.run_with_cache(inputs)
    with model.hooks(fwd_hooks=ablate([cl.Head(0, 2)], method)):
        _, cache = model.run_with_cache(inputs)
    pattern, n = cache["pattern", 0][:, 2], inputs["input_ids"].shape[1]
    counted = torch.ones_like(pattern) if method == "uniform_all_keys" else (plain["pattern", 0][:, 2] > 0).float()
    sinks = getattr(model.hf_layers[0].attentions["attn"].module, "sinks", None)
    expected = counted / (counted.sum(-1, keepdim=True) + (0 if sinks is None else sinks[2].exp()))
    real = inputs["attention_mask"].bool()
    assert_close(pattern[real], expected[real], atol=1e-6, rtol=1e-4)
    assert_close(
        cache["z", 0][:, :, 2][real],
        torch.einsum("bqk,bkd->bqd", pattern, plain["v", 0][:, :, 2 * plain["v", 0].shape[2] // 4])[real],
        atol=1e-5,
        rtol=1e-4,
    )
    if method == "uniform_all_keys":
        assert not cache["attn_scores", 0][:, 2].any()
        assert pattern.shape[-1] == n
    others = [0, 1, 3]
    assert torch.equal(cache["pattern", 0][:, others], plain["pattern", 0][:, others])
    assert torch.equal(cache["z", 0][:, :, others], plain["z", 0][:, :, others])
    assert torch.equal(cache["q", 0], plain["q", 0])


def test_biases_do_not_count():
    """A position bias, and numbers in a mask that is added to the logits."""
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 4)
    mask = torch.randn(1, 1, 5, 5).masked_fill(
        ~torch.ones(5, 5, dtype=torch.bool).tril(), torch.finfo(torch.float32).min
    )
    where = torch.zeros(1, 5, 2, dtype=torch.bool)
    where[:, 1:, 1] = True
    for kwargs in ({}, {"position_bias": torch.randn(1, 2, 5, 5)}):
        call = AttentionCall(nn.Module(), query, key, value, mask, 0.5, kwargs)
        uniform = call.with_zero_logits(where)
        for row in range(1, 5):
            assert_close(uniform.head_outputs()[:, row, 1], value[:, 1, : row + 1].mean(1))
        assert_close(uniform.head_outputs()[:, :, 0], call.head_outputs()[:, :, 0])
        assert_close(uniform.head_outputs()[:, 0], call.head_outputs()[:, 0])
        assert_close(
            uniform.pattern(uniform.scores())[:, 1, 1:],
            torch.ones(5, 5).tril()[1:][None] / torch.arange(2, 6)[None, :, None],
        )


@pytest.mark.parametrize("method", ["uniform", "uniform_all_keys"])
def test_no_pattern_is_computed(method: Any):
    model, inputs = HookedMLLM(tiny.build("qwen3_vl")), tiny.batch("qwen3_vl")
    with (
        patch.object(AttentionCall, "scores", side_effect=AssertionError),
        model.hooks(fwd_hooks=ablate(HEADS, method)),
    ):
        model(inputs)
        model.generate(inputs, max_new_tokens=2)


def test_later_interventions_act_on_uniform_rows():
    """A knockout of half of the keys leaves the mean over the others; head outputs are replaced after it."""
    model = HookedMLLM(tiny.build("qwen3_vl"), build_processor("qwen3_vl"))
    inputs, head = sample_prompts(model), [cl.Head(1, 2)]
    uniform = ablate(head, "uniform_all_keys")
    with model.hooks(fwd_hooks=[*uniform, *cl.attention_knockout(head, "last", "image")]):
        _, cache = model.run_with_cache(inputs)
    keys = ~inputs.tokens.image
    value = cache["v", 1][:, :, 2 * cache["v", 1].shape[2] // 4]
    expected = (value * keys[..., None]).sum(1) / keys.sum(1, keepdim=True)
    assert_close(cache["z", 1][:, -1, 2], expected, atol=1e-5, rtol=1e-4)
    zero = model.run_with_hooks(inputs, fwd_hooks=ablate(head))
    assert torch.equal(model.run_with_hooks(inputs, fwd_hooks=[*uniform, *ablate(head)]), zero)


def test_keys_hidden_from_a_layer_cannot_be_attended_to():
    model = HookedMLLM(tiny.build("qwen3_vl"), build_processor("qwen3_vl"))
    inputs, hidden = sample_prompts(model), cl.mask_keys([1], "image")
    with pytest.raises(ValueError, match="'uniform_all_keys' attends to all keys, and mask_keys hides some"):
        model.run_with_hooks(inputs, fwd_hooks=[*ablate([cl.Head(1, 2)], "uniform_all_keys"), *hidden])
    model.run_with_hooks(inputs, fwd_hooks=[*ablate([cl.Head(0, 2)], "uniform_all_keys"), *hidden])
    with model.hooks(fwd_hooks=[*ablate([cl.Head(1, 2)], "uniform"), *hidden]):
        _, cache = model.run_with_cache(inputs)
    rows = cache["pattern", 1][0, 2, -1]
    assert_close(rows, (~inputs.tokens.image[0] & ~inputs.tokens.padding[0]).float() / (rows > 0).sum())


@pytest.mark.parametrize("positions", [None, "from_question"])
@pytest.mark.parametrize("method", ["uniform", "uniform_all_keys"])
def test_heads_share_the_passes_of_a_session(positions: Any, method: Any):
    model = HookedMLLM(tiny.build("qwen3_vl"), build_processor("qwen3_vl"))
    inputs = answered_prompts(model)
    session = cl.Session(model, inputs)
    interventions = [ablate([head], method, positions=positions) for head in HEADS]
    for hooks, logits in zip(interventions, session.logits_of_each(interventions), strict=True):
        expected = model.run_with_hooks(inputs, fwd_hooks=hooks)[:, session.first :]
        real = ~inputs.tokens.padding[:, session.first :]
        assert_close(logits[real], expected[real], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["qwen3_vl", "gemma3", "internvl_gpt_oss"])
def test_half_precision(family: str):
    model = HookedMLLM(tiny.build(family, dtype=torch.bfloat16))
    inputs = {name: t.bfloat16() if t.is_floating_point() else t for name, t in tiny.batch(family).items()}
    with looped_algorithm_2(model.hf_model, HEADS):
        expected = model.hf_model(**inputs).logits
    logits = model.run_with_hooks(inputs, fwd_hooks=ablate(HEADS, "uniform_all_keys"))
    assert_close(logits, expected, atol=0.02 * float(expected.abs().max()), rtol=0)


def test_the_question_cannot_matter_to_earlier_positions_unless_all_keys_count(toy_model: HookedMLLM):
    """Causality: two prompts that differ in the last token alone."""
    (sample,) = toy.scenes(1, seed=0)
    inputs = toy_model.prepare(sample.images[0], sample.question)
    other = dict(inputs) | {"input_ids": inputs["input_ids"].clone()}
    other["input_ids"][:, -1] += 1
    heads = HeadSet.parse("L0H11 L3H14")
    for method, is_causal in (("uniform", True), ("uniform_all_keys", False)):
        one, two = (toy_model.run_with_hooks(i, fwd_hooks=ablate(heads, method)) for i in (dict(inputs), other))
        assert torch.allclose(one[:, :-1], two[:, :-1], atol=1e-5) == is_causal
