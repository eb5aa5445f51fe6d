"""Hooks on the weights of experts: which act on each token, and what an edit does."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from corelens import HookedMLLM
from tests.helpers import tiny

EXPERTS = {
    **dict.fromkeys(("qwen3_vl_moe", "qwen3_5_moe", "qwen4_exp", "internvl_gpt_oss", "muse_spark", "inkling2"), 0),
    **dict.fromkeys(("aria", "qwen3_omni_moe_thinker", "diffusion_gemma"), 0),
    **dict.fromkeys(("glm4v_moe", "mistral4", "kimi_k25", "inkling_mm_model", "dots3_note", "llama4", "step3p7"), 1),
    **dict.fromkeys(("deepseek_ocr2", "unlimited_ocr", "minimax_m3_vl"), 1),
    "nemotron_h_omni": 3,
}
"""Architectures with mixtures of experts, and the first layer that is one; that of Ernie is tested apart."""


@pytest.mark.filterwarnings("ignore:the indexer of minimax")
@pytest.mark.parametrize("name", EXPERTS)
def test_mixtures_of_experts_say_which_and_edits_choose_others(name: str):
    model, inputs, layer = HookedMLLM(tiny.build(name)), tiny.batch(name), EXPERTS[name]
    # Beside an MLP, in DiffusionGemma's layers as in Gemma 4's.
    part = "mlp" if model.hf_layers[layer].mlp is None else "experts"
    point = f"blocks.{layer}.{part}.hook_expert_weights"
    found: list[Any] = []
    router: Any = model.hf_layers[layer].experts.router
    handle = router.register_forward_hook(lambda module, args, output: found.append(output))
    with torch.no_grad():
        logits, cache = model.run_with_cache(inputs, names_filter=point)
        handle.remove()
        weights = cache[point]
        assert weights.shape[:2] == logits.shape[:2]
        if name == "llama4":
            assert torch.equal(weights.flatten(0, 1), found[0][0])
        else:
            _, chosen, indices, *_ = found[0]
            assert torch.equal(weights.flatten(0, 1).gather(-1, indices), chosen)
            assert ((weights != 0).sum(-1) == chosen.shape[1]).all()
        same = model.run_with_hooks(inputs, fwd_hooks=[(point, lambda weights, hook: weights.clone())])
        assert torch.equal(same, logits)
        real = slice(None) if name == "diffusion_gemma" else inputs["attention_mask"].bool()
        others = model.run_with_hooks(inputs, fwd_hooks=[(point, lambda weights, hook: weights.roll(1, -1))])
        assert not torch.allclose(others[real], logits[real], atol=1e-3)


def test_experts_are_seen_in_each_step_of_a_generation():
    model, inputs = HookedMLLM(tiny.build("qwen3_vl_moe")), tiny.batch("qwen3_vl_moe")
    shapes: list[tuple[int, ...]] = []
    hooks: Any = [("blocks.0.mlp.hook_expert_weights", lambda weights, hook: shapes.append(tuple(weights.shape)))]
    with model.hooks(fwd_hooks=hooks):
        model.generate(inputs, max_new_tokens=3, min_new_tokens=3)
    assert shapes == [(*inputs["input_ids"].shape, 4), (2, 1, 4), (2, 1, 4)]


@pytest.fixture(scope="module")
def ernie() -> HookedMLLM:
    return HookedMLLM(tiny.build("ernie4_5_vl_moe"))


POINT = "blocks.1.mlp.hook_expert_weights"


def test_visual_tokens_have_experts_of_their_own_behind_those_of_words(ernie: HookedMLLM):
    """Against a loop over tokens and experts."""
    inputs = tiny.batch("ernie4_5_vl_moe")
    visual = inputs["moe_mm_token_type_ids"].bool()
    module: Any = ernie.hf_layers[1].block.mlp  # pyright: ignore[reportAttributeAccessIssue]
    seen: list[tuple[Tensor, Tensor]] = []
    handle = module.register_forward_hook(lambda module, args, output: seen.append((args[0], output[0])))
    with torch.no_grad():
        _, cache = ernie.run_with_cache(inputs, names_filter=POINT)
        handle.remove()
        weights, ((stream, output),) = cache[POINT], seen
        assert weights.shape == (*inputs["input_ids"].shape, 8)
        assert not weights[~visual][:, 4:].any()
        assert not weights[visual][:, :4].any()
        for sample, position in [(0, 2), (0, 6), (1, 9), (1, 20)]:
            token = stream[sample, position]
            written = module.shared_experts(token)
            for expert in range(8):
                part = (module.text_moe, module.vision_moe)[expert // 4].experts
                gate, read = (part.gate_up_proj[expert % 4] @ token).chunk(2)
                neurons = part.act_fn(gate) * read
                written += weights[sample, position, expert] * (part.down_proj[expert % 4] @ neurons)
            assert_close(written, output[sample, position], atol=1e-5, rtol=1e-5)


def test_edits_of_experts_by_modality(ernie: HookedMLLM):
    inputs = tiny.batch("ernie4_5_vl_moe")
    visual = inputs["moe_mm_token_type_ids"].bool()
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}

    def swap(weights: Tensor, hook: Any) -> Tensor:
        return torch.cat([part.flip(-1) for part in weights.split(4, -1)], -1)

    def all_of_words(weights: Tensor, hook: Any) -> Tensor:
        return weights.roll(4, -1)

    with torch.no_grad():
        logits = ernie(inputs)
        same = ernie.run_with_hooks(inputs, fwd_hooks=[(POINT, lambda weights, hook: weights.clone())])
        assert torch.equal(same, logits)
        swapped = ernie.run_with_cache(inputs)[1]
        with ernie.hooks([(POINT, swap)]):
            edited = ernie.run_with_cache(inputs)[1]
        difference = (edited["mlp_out", 1] - swapped["mlp_out", 1]).abs().amax(-1)
        assert (difference[inputs["attention_mask"].bool()] > 1e-4).all()
        with pytest.raises(ValueError, match=r"experts of words.* of 8, the last 4 are those of visual tokens"):
            ernie.run_with_hooks(inputs, fwd_hooks=[(POINT, all_of_words)])
        alone = ernie.run_with_cache(text | {"input_ids": text["input_ids"].where(~visual, 7)})[1][POINT]
    assert not alone[..., 4:].any()


def test_gradients_of_experts_by_modality(ernie: HookedMLLM):
    gradients: list[Tensor] = []
    with ernie.hooks(bwd_hooks=[(POINT, lambda gradient, hook: gradients.append(gradient))]):
        ernie(tiny.batch("ernie4_5_vl_moe"))[:, -1].sum().backward()
    ernie.hf_model.zero_grad()
    assert gradients[0][..., :4].any()
    assert gradients[0][..., 4:].any()
