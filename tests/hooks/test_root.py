"""Hooks added by name, what they return, and what their edits reach."""

from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import DynamicCache

from corelens import HookedMLLM
from corelens.hf.versions import CACHE
from tests.helpers import tiny

POINTS = ("attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_attn_scores", "attn.hook_pattern", "attn.hook_z",
          "hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_post")  # fmt: skip
OTHER_SHAPES = {
    "one position": lambda x, hook: x.mean(1, keepdim=True),
    "no batch": lambda x, hook: x[0],
    "one vector": lambda x, hook: x[0, 0],
    "a number": lambda x, hook: 0.0,
}


@pytest.mark.parametrize("point", POINTS)
def test_a_hook_that_returns_another_shape_is_named(point: str):
    model, inputs = HookedMLLM(tiny.build("llava")), tiny.batch("llava")
    for change in OTHER_SHAPES.values():
        with pytest.raises(ValueError, match=rf"a hook on blocks\.1\.{point} returned "):
            model.run_with_hooks(inputs, fwd_hooks=[(f"blocks.1.{point}", change)])


@torch.no_grad()
@pytest.mark.parametrize("point", POINTS)
def test_an_edit_in_place_acts_like_one_that_replaces_and_reaches_nothing_else(point: str):
    """In every step of generation, on no cache, and on no tensor of the caller's."""

    def in_place(x: torch.Tensor, hook: Any) -> None:
        x *= 0.5

    model, inputs, name = HookedMLLM(tiny.build("llava")), tiny.batch("llava"), f"blocks.0.{point}"
    settings: Any = dict(max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True)
    logits = []
    for edit in (in_place, lambda x, hook: x * 0.5):
        with model.hooks(fwd_hooks=[(name, edit)]):
            logits.append(torch.stack(model.generate(inputs, **settings, eos_token_id=None).logits))
    assert torch.equal(logits[0], logits[1])
    text = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    embeds: Any = model.hf_model.get_input_embeddings()(text.pop("input_ids") % 300)
    before = embeds.clone()
    caches = [DynamicCache(config=model.hf_model.config.get_text_config()) for _ in range(2)]
    model(**text, inputs_embeds=embeds, **{CACHE: caches[0]}, use_cache=True)
    if point in ("attn.hook_k", "attn.hook_v"):
        hooks = [(name, in_place)]
        model.run_with_hooks(**text, inputs_embeds=embeds, **{CACHE: caches[1]}, use_cache=True, fwd_hooks=hooks)
        plain, hooked = (cache.layers[0] for cache in caches)
        assert torch.equal(plain.keys, hooked.keys)  # pyright: ignore
        assert torch.equal(plain.values, hooked.values)  # pyright: ignore
    model.run_with_hooks(**text, inputs_embeds=embeds, fwd_hooks=[(name, in_place)])
    assert torch.equal(embeds, before)


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
def test_rows_are_exact_float32_under_autocast(padded: bool):
    model, inputs = HookedMLLM(tiny.build("llava")), tiny.batch("llava", padded)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, cache = model.run_with_cache(inputs)
    query, key = (cache[point, 1].float().transpose(1, 2) for point in ("q", "k"))
    scores = query @ key.repeat_interleave(2, 1).mT * query.shape[-1] ** -0.5
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1) | (inputs["attention_mask"] == 0)[:, None, None]
    expected = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    real = inputs["attention_mask"].bool()
    assert cache["pattern", 1].dtype == torch.float32
    for sample in range(2):
        rows = cache["pattern", 1][sample, :, real[sample]]
        assert_close(rows, expected[sample, :, real[sample]], atol=1e-5, rtol=0)


NO_NAMES = {
    "hooks": lambda model, names: model.hooks(fwd_hooks=[(names, print)]).__enter__(),
    "run_with_hooks": lambda model, names: model.run_with_hooks(tiny.batch("llava"), fwd_hooks=[(names, print)]),
    "run_with_cache": lambda model, names: model.run_with_cache(tiny.batch("llava"), names_filter=names),
    "add_hook": lambda model, names: model.add_hook(names, print),
    "add_caching_hooks": lambda model, names: model.add_caching_hooks(names),
    "get_caching_hooks": lambda model, names: model.get_caching_hooks(names),
    "list_hooks": lambda model, names: model.list_hooks(names),
}


@pytest.mark.parametrize("call", NO_NAMES)
def test_names_and_filters_that_match_no_hook_point_raise_an_error(call: str):
    model = HookedMLLM(tiny.build("llava"))
    with pytest.raises(ValueError, match=r"selects none of the \d+ hook points, .* blocks\.LAYER\.attn\.hook_pattern"):
        NO_NAMES[call](model, lambda name: "hook_patern" in name)
    with pytest.raises(ValueError, match=r"nearest are blocks\.0\.attn\.hook_pattern"):
        NO_NAMES[call](model, "blocks.0.attn.hook_patern")
    assert not any(point.has_hooks() for point in model.hook_points())


def test_backward_hooks_without_gradients_raise_an_error():
    model = HookedMLLM(tiny.build("llava"))
    hooks = [("blocks.1.attn.hook_z", lambda gradient, hook: None)]
    with torch.no_grad(), model.hooks(bwd_hooks=hooks), pytest.raises(ValueError, match="never acts under"):
        model(tiny.batch("llava"))
