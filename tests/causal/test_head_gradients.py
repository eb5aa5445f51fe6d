"""All functions that attribute by gradients: the metrics that they refuse, and results without a graph."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from corelens import HookedMLLM, append_answers, attribution_patch, grad_drop, integrated_gradients
from corelens.causal import AnswerLogProbs, kl_div, log_prob, rank
from corelens.inputs.prepare import PreparedInputs
from tests.helpers import processors, tiny
from tests.helpers.prompts import QUESTION, random_picture

FUNCTIONS: list[Callable[..., Tensor]] = [attribution_patch, grad_drop, integrated_gradients]


@pytest.fixture(scope="module")
def model() -> HookedMLLM:
    return HookedMLLM(tiny.build("qwen3_vl"), processors.build("qwen3_vl"))


@pytest.fixture(scope="module")
def inputs(model: HookedMLLM) -> PreparedInputs:
    return append_answers(model, model.prepare(random_picture(1), QUESTION), ["seven"])


def exact_match(patched: AnswerLogProbs, clean: AnswerLogProbs) -> Tensor:
    return (patched.log_probs.argmax(-1) == patched.targets).all(-1)


def accuracy(patched: AnswerLogProbs, clean: AnswerLogProbs) -> Tensor:
    return exact_match(patched, clean).float()


def first_token(patched: AnswerLogProbs, clean: AnswerLogProbs) -> Tensor:
    return patched.log_probs[:, 0].argmax(-1)


def detached(patched: AnswerLogProbs, clean: AnswerLogProbs) -> Tensor:
    return log_prob(patched, clean).detach()


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("metric", [rank, exact_match, accuracy, first_token, detached])
def test_metrics_without_a_gradient_are_refused_by_name_before_any_pass(
    model: HookedMLLM, inputs: PreparedInputs, function: Callable[..., Tensor], metric: Any
):
    def fail(*_: Any) -> None:
        raise AssertionError("the model ran")

    handle = model.hf_model.register_forward_pre_hook(fail)
    try:
        with pytest.raises(ValueError, match=f"metric={metric.__name__} has no gradient.* take logit_margin"):
            function(model, {}, inputs.tokens, inputs, metric)
    finally:
        handle.remove()


@pytest.mark.parametrize("function", [attribution_patch, grad_drop])
def test_a_metric_that_is_smallest_where_nothing_is_patched_is_refused(
    model: HookedMLLM, inputs: PreparedInputs, function: Callable[..., Tensor]
):
    with pytest.raises(ValueError, match=r"metric=kl_div has no gradient where nothing is patched.* integrated_gradie"):
        function(model, {}, inputs.tokens, inputs, kl_div)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_results_carry_no_graph(model: HookedMLLM, inputs: PreparedInputs, function: Callable[..., Tensor]):
    source = append_answers(model, model.prepare(random_picture(0), QUESTION), ["seven"])
    _, cache = model.run_with_cache(source, names_filter=model.attn_names("z"))
    with_gradient = {name: z.requires_grad_() for name, z in dict(cache).items()}
    result = function(model, with_gradient, source.tokens, inputs)
    assert result.any()
    assert not result.requires_grad
    assert all(parameter.grad is None for parameter in model.hf_model.parameters())


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_metric_may_subtract_its_value_without_the_patch(
    model: HookedMLLM, inputs: PreparedInputs, function: Callable[..., Tensor]
):
    def change(patched: AnswerLogProbs, clean: AnswerLogProbs) -> Tensor:
        return log_prob(patched, clean) - log_prob(clean, clean)

    source = append_answers(model, model.prepare(random_picture(0), QUESTION), ["seven"])
    _, cache = model.run_with_cache(source, names_filter=model.attn_names("z"))
    by_change, by_value = (function(model, cache, source.tokens, inputs, metric) for metric in (change, log_prob))
    torch.testing.assert_close(by_change, by_value)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_prompts_without_answers_are_refused(model: HookedMLLM, function: Callable[..., Tensor]):
    inputs = model.prepare(random_picture(1), QUESTION)
    with pytest.raises(ValueError, match="no expected answers"):
        function(model, {}, inputs.tokens, inputs)
