"""Effects of ablated heads against loops over what each part writes, and against the logits."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from corelens import Head, HeadSet, HookedMLLM, ablate, append_answers, mask_keys, self_repair
from corelens.causal import SelfRepair
from tests.helpers import tiny
from tests.helpers.prompts import QUESTION, family_model, two_prompts

HEADS = (Head(0, 1), Head(1, 2))


def answers_of(inputs: Any) -> Tensor:
    return inputs["input_ids"].gather(1, inputs.tokens.last.to(torch.uint8).argmax(-1, keepdim=True) + 1)[:, 0]


@torch.no_grad()
@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "gemma3"])
def test_changes_are_those_of_a_loop_and_sum_to_that_of_the_logit(family: str):
    model = family_model(family)
    inputs = append_answers(model, two_prompts(model, [QUESTION, "What colour is the 7?"]), ["seven", "red"])
    hooks = ablate(HEADS)
    found = self_repair(model, inputs, hooks)
    last, answers = inputs.tokens.last, answers_of(inputs)
    gemma = family == "gemma3"
    norm: Any = model.hf_layers[0].stack.norm
    gain = norm.weight + 1 if gemma else norm.weight
    _, clean = model.run_with_cache(inputs)
    with model.hooks(fwd_hooks=hooks):
        _, ablated = model.run_with_cache(inputs)
    scale = (clean["resid_post", 2][last].pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()

    def change(written: Any) -> Tensor:
        difference = (written(ablated) - written(clean)) / scale * gain
        return torch.stack([difference[sample] @ model.W_U[:, answer] for sample, answer in enumerate(answers)])

    def head_output(layer: int, head: int, cache: Any) -> Tensor:
        attn: Any = model.blocks[layer].attn  # pyright: ignore
        block: Any = model.hf_layers[layer].block
        by_head = [cache["z", layer][last][:, number] @ attn.W_O[number] for number in range(4)]
        if gemma:
            whole = torch.stack(by_head).sum(0)
            scale_of_layer = (whole.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
            return by_head[head] / scale_of_layer * (1 + block.post_attention_layernorm.weight)
        return by_head[head]

    for layer in range(3):
        for head in range(4):
            expected = change(lambda cache, layer=layer, head=head: head_output(layer, head, cache))
            assert_close(found.changes[:, found.parts.index(f"L{layer}H{head}")], expected, atol=2e-5, rtol=1e-4)
        expected = change(lambda cache, layer=layer: cache["mlp_out", layer][last])
        assert_close(found.changes[:, found.parts.index(f"L{layer} MLP")], expected, atol=2e-5, rtol=1e-4)
    sample = torch.arange(2)
    effect = model.run_with_hooks(inputs, fwd_hooks=hooks)[last][sample, answers] - model(inputs)[last][sample, answers]
    assert_close(found.total, effect, atol=2e-5, rtol=1e-4)
    own = [found.parts.index(str(head)) for head in HEADS]
    assert_close(found.direct, found.changes[:, own].sum(-1))
    assert_close(found.made_up, found.total - found.direct)
    assert found.made_up.abs().min() > 1e-3


def test_backup_heads_are_those_that_oppose_the_direct_effect():
    parts = ("L0H0", "L1H0", "L1H1", "L1 MLP", "L2H3", "last norm")
    changes = torch.tensor([[-4.0, 1.0, -2.0, 3.0, 1.5, 0.5], [-4.0, 0.0, -2.0, 1.0, 1.5, 0.5]])
    found = SelfRepair(changes, parts, (Head(0, 0),))
    assert [row["part"] for row in found.table(3)] == ["L1 MLP", "L2H3", "L1H0"]
    assert found.backup_heads().heads == (Head(2, 3), Head(1, 0))
    mirrored = SelfRepair(-changes, parts, (Head(0, 0),))
    assert mirrored.backup_heads(1) == HeadSet((Head(2, 3),), "backup of L0H0")
    assert [row["part"] for row in mirrored.table(1)] == ["L1 MLP"]


def test_what_has_no_direct_effect_is_refused():
    model = family_model("llava")
    inputs = append_answers(model, two_prompts(model), ["seven", "red"])
    with pytest.raises(ValueError, match="these hooks name no heads"):
        self_repair(model, inputs, mask_keys([1], inputs.tokens.image))
    unknown = HookedMLLM(tiny.build("granite4_vision"))
    with pytest.raises(ValueError, match="what L0H1 adds to the residual stream is not known"):
        self_repair(unknown, inputs, ablate([Head(0, 1)]))
