"""OV by route against loops over heads and keys, and routes cut from what heads write."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from corelens import Head, HookedMLLM, append_answers, key_routes, ov_by_route, toy
from corelens.inputs.prepare import PreparedInputs
from tests.helpers import tiny
from tests.helpers.prompts import QUESTION, family_model, two_prompts

HEADS = (Head(2, 3), Head(0, 1), Head(2, 0))


def answered(model: HookedMLLM) -> PreparedInputs:
    return append_answers(model, two_prompts(model, [QUESTION, "What colour is the 7?"]), ["seven", "red"])


def loop(model: HookedMLLM, inputs: Any, head: Head, mask: Tensor, sample: int) -> Tensor:
    """Attention times value times W_O, behind the norms of Gemma, key by key."""
    _, cache = model.run_with_cache(inputs)
    layer: Any = model.hf_layers[head.layer].block
    gemma = "Gemma" in type(layer).__name__
    last = int(inputs.tokens.last[sample].nonzero()[0, 0])
    answer = int(inputs["input_ids"][sample, last + 1])
    z = cache["z", head.layer][sample, last]
    w_o = layer.self_attn.o_proj.weight
    values, pattern = cache["v", head.layer][sample], cache["pattern", head.layer][sample, head.head, last]
    group, width = z.shape[0] // values.shape[1], z.shape[1]
    total = torch.tensor(0.0)
    for key in mask[sample].nonzero().flatten().tolist():
        weight = w_o[:, head.head * width : (head.head + 1) * width]
        written = weight @ (pattern[key] * values[key, head.head // group])
        if gemma:
            whole = w_o @ z.flatten()
            written = written / (whole.pow(2).mean() + 1e-6).sqrt() * (1 + layer.post_attention_layernorm.weight)
        stream = cache["resid_post", len(model.hf_layers) - 1][sample, last]
        norm: Any = model.hf_layers[0].stack.norm
        gain = norm.weight + 1 if gemma else norm.weight
        normed = written / (stream.pow(2).mean() + 1e-6).sqrt() * gain
        total += normed @ model.hf_model.get_output_embeddings().weight[answer]
    return total


@torch.no_grad()
@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "gemma3"])
def test_routes_are_those_of_a_loop_and_sum_to_the_direct_effect(family: str):
    model = family_model(family)
    inputs = answered(model)
    evidence = inputs.tokens.in_box((0, 0, 40, 40))
    routes = key_routes(inputs.tokens, evidence)
    found = ov_by_route(model, inputs, HEADS, routes)
    for number, head in enumerate(HEADS):
        for at, mask in enumerate(routes.values()):
            for sample in range(2):
                expected = loop(model, inputs, head, mask, sample)
                assert_close(found.values[sample, number, at], expected, atol=1e-5, rtol=1e-4)
    # TransformerLens's attribution of the head's whole output, where no norm stands behind W_O.
    if family != "gemma3":
        _, cache = model.run_with_cache(inputs)
        heads, labels = cache.stack_head_results(return_labels=True, apply_ln=False)
        answers = inputs["input_ids"].gather(1, inputs.tokens.last.to(torch.uint8).argmax(-1, keepdim=True) + 1)[:, 0]
        at_last = heads[labels.index("L2H3")][inputs.tokens.last]
        stream = cache["resid_post", -1][inputs.tokens.last]
        normed: Any = at_last / (stream.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
        normed = normed * model.hf_layers[0].stack.norm.weight
        whole = (normed * model.W_U.T[answers]).sum(-1)
        assert_close(found.direct_effects[:, 0], whole, atol=1e-5, rtol=1e-4)


def test_routes_hold_every_position_once_and_name_what_is_there(toy_model: HookedMLLM):
    sample = next(toy.scenes(1, seed=0))
    inputs = toy_model.prepare(sample.images[0], sample.question)
    tokens, evidence = inputs.tokens, inputs.tokens.in_box(sample.evidence[0].box)
    routes = key_routes(tokens, evidence)
    assert list(routes) == ["first token", "evidence", "other visual", "question", "other"]
    assert (torch.stack([*routes.values()]).sum(0) == 1).all()
    assert torch.equal(routes["evidence"], evidence)
    assert torch.equal(routes["other visual"], tokens.visual & ~evidence)
    assert routes["first token"].nonzero().tolist() == [[0, 0]]
    assert list(key_routes(tokens)) == ["first token", "visual", "question", "other"]


@torch.no_grad()
def test_the_logit_of_another_token_is_taken_off():
    model = family_model("llava")
    inputs = answered(model)
    others = torch.tensor([7, 9])
    routes = key_routes(inputs.tokens)
    swapped = {**inputs, "input_ids": inputs["input_ids"].clone()}
    for sample, position in inputs.tokens.last.nonzero().tolist():
        swapped["input_ids"][sample, position + 1] = others[sample]
    found, of_answer, of_other = (
        ov_by_route(model, given, HEADS, routes, other).values
        for given, other in ((inputs, others), (inputs, None), (PreparedInputs(swapped, inputs.tokens), None))
    )
    assert_close(found, of_answer - of_other, atol=1e-5, rtol=1e-4)


def test_the_table_has_means_over_samples():
    model = family_model("llava")
    inputs = answered(model)
    found = ov_by_route(model, inputs, HEADS, key_routes(inputs.tokens))
    (row, *_) = found.table()
    assert row["head"] == "L2H3"
    assert row["all"] == pytest.approx(float(found.direct_effects[:, 0].mean()), abs=1e-6)
    assert row["visual"] == pytest.approx(float(found.values[:, 0, 1].mean()), abs=1e-6)


def test_what_has_no_routes_is_refused():
    model = family_model("llava")
    inputs = answered(model)
    routes = key_routes(inputs.tokens)
    with pytest.raises(ValueError, match="have no expected answers"):
        ov_by_route(model, two_prompts(model), HEADS, key_routes(two_prompts(model).tokens))
    with pytest.raises(ValueError, match=r"'question' has shape .* it belongs to another prompt"):
        ov_by_route(model, inputs, HEADS, {"question": routes["question"][:, 1:]})
    gated = HookedMLLM(tiny.build("qwen3_5"))
    with pytest.raises(ValueError, match="L3H1 writes no sum over its keys: a gate"):
        ov_by_route(gated, inputs, [Head(3, 1)], routes)
