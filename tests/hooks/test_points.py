"""Interventions on heads behind gates and norms, and on decoders that attend to an encoder."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import corelens as cl
from corelens import Role, TokenMap
from corelens.inputs.prepare import PreparedInputs
from tests.helpers import processors, tiny
from tests.helpers.questions import samples

GATED = ("qwen3_5", "qwen4_exp", "lfm3_vl", "dots3_note", "inkling2", "muse_spark", "step3p7")


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


def mapped(tensors: dict[str, Tensor]) -> Any:
    """A token map of a batch that no processor made: text throughout."""
    role = torch.where(tensors["attention_mask"].bool(), int(Role.STRUCTURAL), int(Role.PADDING))
    nowhere, nan = torch.full_like(role, -1), torch.full((*role.shape, 4), torch.nan)
    places = {place: nowhere for place in ("media", "view", "row", "column")}
    return TokenMap(role, **places, overview=nowhere > 0, box=nan, seconds=nan[..., :2], sizes=((),) * len(role))


def with_columns(model: Any, inputs: Any, head: Any, new: Tensor) -> Tensor:
    """Logits of a pass in which other numbers enter a head's columns of W_O, by PyTorch's own hook."""
    site = model.blocks[head.layer].hf_layer.attentions["attn"]

    def write(module: Any, args: tuple[Tensor]) -> tuple[Tensor]:
        entering = args[0].unflatten(-1, (site.n_heads, -1)).clone()
        entering[..., head.head, :] = new.reshape(entering[..., head.head, :].shape)
        return (entering.reshape(args[0].shape),)

    handle = site.w_o.register_forward_pre_hook(write)
    try:
        return model.hf_model(**inputs).logits
    finally:
        handle.remove()


# --- gates and norms -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GATED)
def test_zero_before_a_gate_is_zero_behind_it_and_in_the_weights(name: str):
    model, inputs = cl.HookedMLLM(tiny.build(name)), tiny.batch(name)
    heads = [model.heads[1], model.heads[-1]]
    with cl.zeroed_weights(model, heads):
        expected = model(inputs)
    for point in ("z", "o_in"):
        found = model.run_with_hooks(inputs, fwd_hooks=cl.ablate(heads, point=point))
        assert_close(found, expected, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(model(inputs), expected, atol=1e-3)


@pytest.mark.parametrize("name", [*GATED, "kosmos-2"])
def test_patching_behind_a_gate_is_writing_into_w_o(name: str):
    model, source, target = cl.HookedMLLM(tiny.build(name)), tiny.batch(name, seed=5), tiny.batch(name)
    tokens, head = mapped(target), model.heads[1]
    _, cache = model.run_with_cache(source)
    logits = {}
    for point in ("o_in", *(("z",) if name in GATED else ())):
        hooks = cl.patch(cache, mapped(source), tokens, point, heads=[head], positions=torch.ones_like(tokens.padding))
        logits[point] = model.run_with_hooks(target, fwd_hooks=hooks)
    own = model.run_with_cache(target)[1]["o_in", head.layer, "attn"]
    new = torch.where(
        tokens.padding[..., None], own[:, :, head.head], cache["o_in", head.layer, "attn"][:, :, head.head]
    )
    assert_close(logits["o_in"], with_columns(model, target, head, new), atol=2e-5, rtol=1e-4)
    # The target's own gate stands behind what is patched before it.
    assert name not in GATED or not torch.allclose(logits["z"], logits["o_in"], atol=1e-4)


@pytest.mark.parametrize("name", ["qwen3_5", "lfm3_vl"])
def test_means_before_and_behind_a_gate_are_different_means(name: str):
    model = cl.HookedMLLM(tiny.build(name), processors.build(name))
    prompts = [model.prepare(list(sample.images), sample.question) for sample in samples()]
    head, logits = model.heads[-1], []
    for point in ("z", "o_in"):
        means = cl.mean_activations(model, samples(), point=point, batch_size=2)
        shown = [model.run_with_cache(inputs)[1][point, head.layer, "attn"][0, :, head.head] for inputs in prompts]
        mean = torch.cat(shown).mean(0)
        assert_close(means.values[f"blocks.{head.layer}.attn.hook_{point}"][0, head.head], mean, atol=1e-5, rtol=1e-4)
        logits.append(model.run_with_hooks(prompts[0], fwd_hooks=cl.ablate([head], "mean", means, point=point)))
    assert_close(logits[1], with_columns(model, prompts[0], head, mean.expand(prompts[0].shape[1], -1)))
    assert not torch.allclose(logits[0], logits[1], atol=1e-4)
    with pytest.raises(
        ValueError, match=r"needs reference=mean_activations\(model, samples\), and this was measured .* o_in"
    ):
        cl.ablate([head], "mean", means)


def test_a_norm_over_all_heads_lets_one_be_edited_behind_it_alone():
    model, inputs = cl.HookedMLLM(tiny.build("kosmos-2")), tiny.batch("kosmos-2")
    with cl.zeroed_weights(model, [cl.Head(1, 1)]):
        expected = model(inputs)
    found = model.run_with_hooks(inputs, fwd_hooks=cl.ablate([cl.Head(1, 1)], point="o_in"))
    assert_close(found, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"hook_z was edited, and .* all heads together .* Edit hook_o_in"):
        model.run_with_hooks(inputs, fwd_hooks=cl.ablate([cl.Head(1, 1)]))


# --- mean queries ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*tiny.FAMILIES[:3], "internvl", "qwen3_5", "lfm3_vl"])
def test_a_mean_query_meets_the_keys_as_they_are(name: str):
    """Against the softmax of its products with the keys that the pass shows."""
    model = cl.HookedMLLM(tiny.build(name), processors.build(name))
    inputs = model.prepare([list(s.images) for s in samples(2)], [s.question for s in samples(2)])
    head = model.heads[-1]
    means = cl.mean_activations(model, samples(), point="q")
    loop = [model.prepare(list(s.images), s.question) for s in samples()]
    shown = [model.run_with_cache(one)[1]["q", head.layer, "attn"][0, :, head.head] for one in loop]
    mean = torch.cat(shown).mean(0)
    assert_close(means.values[f"blocks.{head.layer}.attn.hook_q"][0, head.head], mean, atol=1e-5, rtol=1e-4)
    _, plain = model.run_with_cache(inputs)
    with model.hooks(fwd_hooks=cl.ablate([head], "mean_query", means, positions="question")):
        _, cache = model.run_with_cache(inputs)
    site = model.blocks[head.layer].hf_layer.attentions["attn"]
    keys = plain["k", head.layer, "attn"][:, :, head.head * site.n_kv_heads // site.n_heads]
    scores = (keys @ mean * site.module.scaling)[:, None].masked_fill(
        plain["pattern", head.layer][:, head.head] == 0, -1e9
    )
    question, pattern = inputs.tokens.question, cache["pattern", head.layer][:, head.head]
    assert_close(pattern[question], scores.softmax(-1)[question], atol=1e-5, rtol=1e-4)
    rest = ~question & ~inputs.tokens.padding
    assert_close(pattern[rest], plain["pattern", head.layer][:, head.head][rest], atol=1e-6, rtol=1e-5)


# --- encoders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mllama", "idefics", "florence2", "udop", "vision-encoder-decoder"])
def test_heads_beside_or_at_an_encoder_are_ablated(name: str):
    model, inputs = cl.HookedMLLM(tiny.build(name)), tiny.batch(name)
    for head in (model.heads[1], model.heads[-1]):
        with cl.zeroed_weights(model, [head]):
            expected = model(inputs)
        found = model.run_with_hooks(inputs, fwd_hooks=cl.ablate([head]))
        assert_close(found, expected, atol=2e-5, rtol=1e-4)
        assert not torch.allclose(model(inputs), expected, atol=1e-4)


def test_what_needs_keys_of_the_sequence_is_refused_where_there_are_none():
    model, inputs = cl.HookedMLLM(tiny.build("mllama")), tiny.batch("mllama")
    late, early = torch.zeros(2, *inputs["input_ids"].shape, dtype=torch.bool)
    late[:, -2:], early[:, 4:6] = True, True
    before = model(inputs)
    assert not torch.allclose(
        model.run_with_hooks(inputs, fwd_hooks=cl.attention_knockout([cl.Head(0, 0)], late, early)), before
    )
    for hooks in (
        cl.attention_knockout([cl.Head(1, 0)], late, early),
        cl.scale_attention([cl.Head(3, 0)], late, early, 2),
    ):
        with pytest.raises(ValueError, match=r"layer [13] attends to the encoder, so that its keys are not positions"):
            model.run_with_hooks(inputs, fwd_hooks=hooks)


@pytest.mark.parametrize("name", ["florence2", "udop"])
def test_answers_of_a_decoder_beside_an_encoder_do_not_follow_the_prompt(name: str):
    model, tensors = cl.HookedMLLM(tiny.build(name)), tiny.batch(name)
    inputs = PreparedInputs(tensors, mapped(tensors | {"attention_mask": torch.ones_like(tensors["input_ids"])}))
    with pytest.raises(TypeError, match="has an encoder and a decoder: its answers do not follow the prompt"):
        cl.append_answers(model, inputs, [[5], [6]])
    with pytest.raises(ValueError, match="attends to an encoder: its prompts have no prefix"):
        model.prefix(inputs, 3)
