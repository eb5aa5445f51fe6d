"""Integrated gradients against patches of all heads, of paths of single heads, and of single heads."""

from typing import Any

import pytest
import torch
from torch import Tensor

from corelens import (
    Head,
    HookedMLLM,
    append_answers,
    attribution_patch,
    integrated_gradients,
    patch,
    path_patch,
    sweep,
    toy,
)
from corelens.causal import AnswerLogProbs, kl_div, log_prob, logit_margin
from corelens.causal.effects import PatchingMetric
from corelens.inputs.prepare import PreparedInputs
from tests.helpers import processors, tiny
from tests.helpers.prompts import QUESTION, random_picture


def cache_of_heads(model: HookedMLLM, inputs: PreparedInputs) -> dict[str, Tensor]:
    with torch.no_grad():
        _, cache = model.run_with_cache(inputs, names_filter=model.attn_names("z"))
    return dict(cache)


@torch.no_grad()
def effect(model: HookedMLLM, inputs: PreparedInputs, metric: PatchingMetric, hooks: list) -> Tensor:
    clean = AnswerLogProbs.of(model(inputs), inputs)
    patched = AnswerLogProbs.of(model.run_with_hooks(inputs, fwd_hooks=hooks), inputs)
    return metric(patched, clean) - metric(clean, clean)


@pytest.fixture(params=["qwen3_vl", "llava"])
def model(request: pytest.FixtureRequest) -> HookedMLLM:
    return HookedMLLM(tiny.build(request.param), processors.build(request.param))


@pytest.fixture
def pair(toy_model: HookedMLLM) -> tuple[PreparedInputs, PreparedInputs]:
    """Two scenes with one question, and the answer of the first."""
    here, there = toy.scenes(2, seed=3)
    inputs, source = (
        append_answers(toy_model, toy_model.prepare(sample.images[0], here.question), [here.answer])
        for sample in (here, there)
    )
    return inputs, source


@pytest.mark.parametrize(
    ("metric", "reference", "positions", "steps"),
    [
        (logit_margin, "another picture", "last", 16),
        (logit_margin, "another picture", None, 16),
        (logit_margin, "mean", "last", 16),
        (log_prob, "another picture", "last", 16),
        (log_prob, "mean", "last", 64),  # the model is sure of its answer on most of the line
        (kl_div, "another picture", "last", 16),
    ],
)
def test_shares_of_all_heads_add_up_to_the_patch_of_all_heads(
    toy_model: HookedMLLM,
    pair: tuple[PreparedInputs, ...],
    metric: PatchingMetric,
    reference: str,
    positions: Any,
    steps: int,
):
    inputs, source = pair
    cache = cache_of_heads(toy_model, source)
    if reference == "mean":
        cache = {name: z.mean(1, keepdim=True).expand_as(z) for name, z in cache.items()}
    shares = integrated_gradients(toy_model, cache, source.tokens, inputs, metric, positions=positions, steps=steps)
    hooks = patch(cache, source.tokens, inputs.tokens, heads=toy_model.heads, positions=positions)
    whole = effect(toy_model, inputs, metric, hooks)
    assert abs(float(whole)) > 1
    torch.testing.assert_close(shares.sum((1, 2)), whole, rtol=0.01, atol=0)


def test_shares_add_up_in_each_sample_of_a_padded_batch(model: HookedMLLM):
    pictures, others = ([random_picture(seed) for seed in seeds] for seeds in ((1, 2), (3, 4)))
    questions = [QUESTION, f"{QUESTION} And which is blue?"]
    inputs, source = (
        append_answers(model, model.prepare(list(each), questions), ["seven", "It is"]) for each in (pictures, others)
    )
    cache = cache_of_heads(model, source)
    shares = integrated_gradients(model, cache, source.tokens, inputs, steps=4)
    hooks = patch(cache, source.tokens, inputs.tokens, heads=model.heads)
    torch.testing.assert_close(shares.sum((1, 2)), effect(model, inputs, logit_margin, hooks), rtol=0.01, atol=1e-5)


def test_the_share_of_a_head_is_what_it_does_past_later_heads(model: HookedMLLM):
    """Near the target, where what the other heads do at the same time makes no difference."""
    inputs, source = (
        append_answers(model, model.prepare(random_picture(seed), QUESTION), ["seven"]) for seed in (1, 0)
    )
    here, there = cache_of_heads(model, inputs), cache_of_heads(model, source)
    near = {name: here[name] + 1e-2 * (there[name] - here[name]) for name in here}
    shares = integrated_gradients(model, near, source.tokens, inputs, steps=1)[0]
    for head in (Head(0, 0), Head(0, 1), Head(model.cfg.n_layers - 1, 0)):
        hooks = path_patch(model, near, source.tokens, inputs, head)
        expected = effect(model, inputs, logit_margin, hooks)[0]
        torch.testing.assert_close(shares[head], expected, rtol=0.1, atol=float(shares.abs().max()) / 100)


def test_shares_follow_patches_of_single_heads(toy_model: HookedMLLM, pair: tuple[PreparedInputs, ...]):
    inputs, source = pair
    cache = cache_of_heads(toy_model, source)
    shares = integrated_gradients(toy_model, cache, source.tokens, inputs, positions="last")
    first_order = attribution_patch(toy_model, cache, source.tokens, inputs, positions="last")
    patches = sweep(
        toy_model,
        inputs,
        lambda heads: patch(cache, source.tokens, inputs.tokens, heads=heads, positions="last"),
        logit_margin,
        progress=False,
    )
    exact = -patches.drop[0]
    by_shares, by_first_order = (
        float(torch.corrcoef(torch.stack([each.flatten(), exact]))[0, 1]) for each in (shares, first_order)
    )
    assert by_shares > 0.95
    assert by_shares > by_first_order > 0.9


def test_a_line_without_points_is_refused(model: HookedMLLM):
    inputs = append_answers(model, model.prepare(random_picture(1), QUESTION), ["seven"])
    with pytest.raises(ValueError, match="steps=0 needs to be at least one"):
        integrated_gradients(model, {}, inputs.tokens, inputs, steps=0)
