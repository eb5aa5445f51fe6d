"""Every image-text-to-text architecture of transformers against its own eager attention and against weight surgery."""

import warnings
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from torch.testing import assert_close

REFUSED = ("git", "blip")
"""Their text attention is not dispatched, so they cannot be wrapped."""

WARNED = ("phi4_multimodal", "minimax_m3_vl")
"""Wrapping them names a fault of transformers."""

EAGER_IS_ANOTHER_MODEL_WHEN_PADDED = ("minimax_m3_vl", "diffusion_gemma")
"""Faults of transformers: padding is masked under sdpa, the default, and not, or not in the same way, under eager."""

ATTENTIONS_NOT_LISTED = {"idefics": "cross_attn"}
"""Hugging Face returns the self-attention alone."""

SUPPORTED = [name for name in tiny.ARCHITECTURES if name not in REFUSED]


def build(name: str, **options: Any) -> Any:
    hf_model = tiny.build(name, **options)
    for module in hf_model.modules():
        # The fault that wrapping warns of: eager and sdpa are not the same model otherwise.
        if type(module).__name__ == "Phi4MultimodalVisionAttention":
            module.is_causal = False
    return hf_model


def wrap(hf_model: Any) -> Any:
    from corelens import HookedMLLM

    with warnings.catch_warnings():
        if hf_model.config.model_type in WARNED:
            warnings.simplefilter("ignore")
        return HookedMLLM(hf_model)


@pytest.fixture(scope="module", params=SUPPORTED)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def hf_model(name: str) -> Any:
    return build(name)


@pytest.fixture(scope="module")
def model(hf_model: Any) -> Any:
    return wrap(hf_model)


@pytest.fixture(scope="module")
def eager(name: str) -> Any:
    return build(name, attention="eager")


@pytest.fixture(scope="module")
def plain(name: str) -> dict[str, Tensor]:
    return tiny.batch(name, padded=False)


@pytest.fixture(scope="module")
def padded(name: str) -> dict[str, Tensor]:
    return tiny.batch(name, padded=True)


def real_queries(hf_model: Any, inputs: dict[str, Tensor], n_queries: int) -> Tensor:
    """Which rows of a pattern are no padding, which attends to nothing and looks as it likes."""
    mask = inputs.get("attention_mask")
    if hf_model.config.is_encoder_decoder or mask is None or mask.shape[1] != n_queries:
        return torch.ones(2, n_queries, dtype=torch.bool)
    return mask.bool()


def at(chosen: Tensor, rows: Tensor) -> Tensor:
    """[batch head query key] at the chosen queries."""
    return rows.transpose(1, 2)[chosen]


def eager_rows(outputs: Any, model: Any) -> dict[str, Tensor]:
    """What Hugging Face returns as attentions, by the name of the hook point."""
    for part in ("language_model_outputs", "decoder_attentions", "attentions"):
        if getattr(outputs, part, None) is not None:
            break
    found = getattr(outputs, part)
    found = found.attentions if part == "language_model_outputs" else found
    crossing = getattr(outputs, "cross_attentions", None)
    own, cross = model.attn_names("pattern"), [n for n in model.hook_dict if n.endswith("cross_attn.hook_pattern")]
    if crossing and not cross:  # one softmax over both, which Hugging Face returns in two parts (T5Gemma 2)
        found, crossing = [torch.cat(pair, -1) for pair in zip(found, crossing, strict=True)], None
    by_name = dict(zip(own, [a for a in found if a is not None], strict=True))
    return by_name | (dict(zip(cross, crossing, strict=True)) if crossing else {})


@torch.no_grad()
def test_unhooked_logits_are_bit_identical(hf_model: Any, model: Any, plain: Any, padded: Any):
    for inputs in (plain, padded):
        assert torch.equal(model(inputs), hf_model(**inputs).logits)


@torch.no_grad()
@pytest.mark.parametrize("padding", [False, True], ids=["plain", "padded"])
def test_patterns_are_those_of_eager_attention(
    name: str, hf_model: Any, model: Any, eager: Any, plain: Any, padded: Any, padding: bool
):
    inputs = padded if padding else plain
    logits, cache = model.run_with_cache(inputs)
    assert set(cache) == {name for name in model.hook_dict if not name.startswith("vision.")}
    expected = eager_rows(eager(**inputs, output_attentions=True), model)
    unlisted = ATTENTIONS_NOT_LISTED.get(name)
    assert set(expected) == {key for key in cache if key.endswith("pattern") and not (unlisted and unlisted in key)}
    for key, rows in expected.items():
        real = real_queries(hf_model, inputs, rows.shape[2])
        if padding and name in EAGER_IS_ANOTHER_MODEL_WHEN_PADDED:
            real[1] = False
        assert_close(at(real, cache[key]), at(real, rows), atol=1e-5, rtol=0)
    real = real_queries(hf_model, inputs, logits.shape[1])
    assert_close(logits[real], hf_model(**inputs).logits[real], atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_chosen_rows_are_rows_of_the_whole_pattern(name: str, hf_model: Any, model: Any, padded: Any):
    _, whole = model.run_with_cache(padded, names_filter=lambda name: name.endswith("hook_pattern"))
    shape = padded["decoder_input_ids" if "decoder_input_ids" in padded else "input_ids"].shape
    queries = torch.zeros(shape, dtype=torch.bool)
    queries[0, [-3, -1]] = True
    queries[1, -2:] = True
    names = [key for key in whole if not key.startswith("vision.")]
    if name in ("pi0", "diffusion_gemma"):  # their decoder does not read the sequence, but actions or a canvas
        return
    _, cache = model.run_with_cache(padded, queries=queries, names_filter=names)
    for key in names:
        assert cache[key].shape[2] == 2
        assert_close(at(torch.ones(2, 2, dtype=torch.bool), cache[key]), at(queries, whole[key]), atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("padding", [False, True], ids=["plain", "padded"])
def test_cached_generation_shows_eager_rows(
    name: str, hf_model: Any, model: Any, eager: Any, plain: Any, padded: Any, padding: bool
):
    inputs = tiny.generation_inputs(name, padded if padding else plain)
    if name in tiny.NO_GENERATION or (name == "evolla" and padding) or (name == "minimax_m3_vl" and padding):
        return
    length = dict(max_new_tokens=3, do_sample=False, eos_token_id=None, use_cache=True)
    expected = eager.generate(**inputs, **length, output_attentions=True, return_dict_in_generate=True)
    steps = expected.attentions if "attentions" in expected else expected.decoder_attentions
    seen: dict[str, list[Tensor]] = {key: [] for key in model.attn_names("pattern")}

    def keep(pattern: Tensor, hook: Any) -> None:
        seen[hook.name].append(pattern)

    inputs = tiny.generation_inputs(name, padded if padding else plain)
    with model.hooks(fwd_hooks=[(key, keep) for key in seen]):
        sequences = model.generate(inputs, **length)
    assert torch.equal(sequences, expected.sequences)
    crossing = getattr(expected, "cross_attentions", None)
    for index, rows in enumerate(seen.values()):
        assert len(rows) == len(steps)
        for number, (step, row) in enumerate(zip(steps, rows, strict=True)):
            theirs = [layer for layer in step if layer is not None][index]
            if name == "t5gemma2":
                theirs = torch.cat([theirs, crossing[number][index]], -1)
            # Gemma 4's layers that share keys compute the last row of the prompt only.
            assert_close(row[:, :, -1], theirs[:, :, -1], atol=1e-5, rtol=0)
