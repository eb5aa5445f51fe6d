"""Passes and generation after a prefix against whole passes."""

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from corelens import Head, HookedMLLM, Role, ablate
from corelens.causal.session import prefix_if_possible
from corelens.hf.prefix_cache import PrefixCache
from corelens.interventions.ablation import zeroed_weights
from tests.helpers import tiny
from tests.helpers.prompts import (
    LONG_QUESTION,
    QUESTION,
    answered_prompts,
    family_model,
    two_prompts,
    uneven_picture,
)


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def model(request: pytest.FixtureRequest) -> HookedMLLM:
    return family_model(request.param)


def logits_of_copies(model: HookedMLLM, inputs: Any, prefix: PrefixCache, n_copies: int) -> Tensor:
    """Logits after the prefix of a batch that holds several copies of every sample, one after another."""
    with model.connected(inputs, getattr(inputs, "tokens", None), prefix):
        return model.hf_model(**prefix.suffix_inputs(inputs, n_copies)).logits


@torch.no_grad()
def test_passes_after_a_prefix_are_whole_passes(model: HookedMLLM):
    inputs = answered_prompts(model)
    prefix = model.prefix(inputs)
    assert prefix.length == int(inputs.tokens.question.any(0).nonzero()[0])
    expected = model(inputs)[:, prefix.length :]
    real = ~inputs.tokens.padding[:, prefix.length :]
    for _ in range(2):
        assert_close(model(inputs, prefix=prefix)[real], expected[real], atol=1e-5, rtol=1e-5)
    for number in range(3):
        copies = logits_of_copies(model, inputs, prefix, 3)[number::3]
        assert_close(copies[real], expected[real], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}])
def test_generation_after_a_prefix_is_generation(model: HookedMLLM, options: dict[str, Any]):
    inputs = two_prompts(model)
    prefix = model.prefix(inputs)
    settings = {"max_new_tokens": 6, "do_sample": False} | options
    torch.manual_seed(0)
    expected = model.generate(inputs, **settings)
    for _ in range(2):
        torch.manual_seed(0)
        assert torch.equal(model.generate(inputs, prefix=prefix, **settings), expected)


@torch.no_grad()
def test_other_questions_share_the_prefix(model: HookedMLLM):
    inputs = model.prepare(uneven_picture(0), QUESTION)
    other_question = model.prepare(uneven_picture(0), "What colour is the 7, and what else is there?")
    prefix = model.prefix(inputs)
    model.prefix(model.prepare(uneven_picture(1), QUESTION))  # some models keep something of their last prompt
    expected = model(other_question)[:, prefix.length :]
    assert_close(model(other_question, prefix=prefix), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(
        ValueError, match=r"the prefix was made of other inputs: `(pixel_values|image_grid_thw|input_ids)`"
    ):
        model(model.prepare(uneven_picture(1), QUESTION), prefix=prefix)
    with pytest.raises(ValueError, match="the prefix was made of other inputs"):
        model(model.prepare(None, "Which of all these digits is red? Tell me at once, please."), prefix=prefix)
    with pytest.raises(ValueError, match="the prefix was made by another model"):
        type(model)(copy.deepcopy(model.hf_model))(other_question, prefix=prefix)


@torch.no_grad()
def test_an_intervention_on_a_prefix_that_was_made_without_it(model: HookedMLLM):
    inputs, hooks = two_prompts(model), ablate([Head(0, 1)])
    prefix = model.prefix(inputs)
    with model.hooks(fwd_hooks=hooks):
        with pytest.raises(ValueError, match="is in a cache that was made without it"):
            model(inputs, prefix=prefix)
        with pytest.raises(ValueError, match="is in a cache that was made without it"):
            model.generate(inputs, prefix=prefix, max_new_tokens=1)
        ablated_prefix = model.prefix(inputs)
        expected = model(inputs)[:, ablated_prefix.length :]
        assert_close(model(inputs, prefix=ablated_prefix), expected, atol=1e-5, rtol=1e-5)


def edit(weight: nn.Parameter) -> None:
    with torch.no_grad():
        weight[1:].neg_()


EDITS: dict[str, Callable[[HookedMLLM, nn.Module], Any]] = {
    "in place": lambda model, projection: edit(projection.weight),
    "of a view": lambda model, projection: edit(projection.weight.detach()),
    "by a step": lambda model, projection: step(projection.weight),
    "by loading": lambda model, projection: model.hf_model.load_state_dict(model.hf_model.state_dict()),
    "by other weights": lambda model, projection: setattr(projection, "weight", nn.Parameter(projection.weight * 2)),
    "of a head": lambda model, projection: zeroed_weights(model, [Head(0, 0)]).__enter__(),
}
"""Edits of the weights of a model."""


def step(weight: nn.Parameter) -> None:
    weight.grad = torch.ones_like(weight)
    torch.optim.SGD([weight], 0.1).step()


@torch.no_grad()
@pytest.mark.parametrize("kind", EDITS)
def test_a_prefix_is_not_continued_with_other_weights(kind: str):
    model = family_model("qwen3_vl")
    inputs = two_prompts(model)
    prefix = model.prefix(inputs)
    model(inputs, prefix=prefix)
    EDITS[kind](model, model.hf_model.get_decoder().layers[0].self_attn.o_proj)
    for run in (model, partial(model.generate, max_new_tokens=1)):
        with pytest.raises(ValueError, match=r"the prefix was computed with other weights: .* Compute it again"):
            run(inputs, prefix=prefix)


def test_copies_of_a_prefix_are_the_prefix_and_it_is_not_pickled():
    model = family_model("qwen3_vl")
    inputs = two_prompts(model)
    prefix = model.prefix(inputs)
    for other in (copy.copy(prefix), copy.deepcopy(prefix)):
        assert torch.equal(model(inputs, prefix=other), model(inputs, prefix=prefix))
    with pytest.raises(TypeError, match=r"cannot be pickled: compute it where it is used, by model\.prefix"):
        pickle.dumps(prefix)


def test_prompts_without_a_prefix(model: HookedMLLM):
    inputs = two_prompts(model)
    uneven = two_prompts(model, [QUESTION, LONG_QUESTION])
    with pytest.raises(ValueError, match=r"questions of this batch begin at positions \d+, \d+, since .* one by one"):
        model.prefix(uneven)
    assert prefix_if_possible(model, uneven) is None
    late = two_prompts(model)
    late.tokens.role[:, 1] = int(Role.QUESTION)
    with pytest.raises(ValueError, match="a picture or video stands after position 1, where the first question"):
        model.prefix(late)
    with pytest.raises(ValueError, match=r"these inputs have no token map: give the number of positions"):
        model.prefix(dict(inputs))


@torch.no_grad()
def test_questions_of_different_lengths_in_one_batch(model: HookedMLLM):
    """Without pictures they share the positions before all of them, padding included."""
    text = model.prepare([None, None], ["Which?", LONG_QUESTION])
    model(two_prompts(model))  # some models keep something of their last pictures
    prefix = model.prefix(text)
    real = ~text.tokens.padding[:, prefix.length :]
    assert_close(model(text, prefix=prefix)[real], model(text)[:, prefix.length :][real], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mllama", "attends to an encoder: its prompts have no prefix"),
        (
            "paligemma",
            "does not compute the same after a prefix as in a whole pass .*: its prompts attend to later positions",
        ),
        ("blip-2", "cannot continue from a prefix: TypeError"),
    ],
)
def test_models_that_cannot_continue_from_a_prefix_are_refused(name: str, message: str):
    model, inputs = HookedMLLM(tiny.build(name)), tiny.batch(name)
    n_positions = inputs["input_ids"].shape[1] - 9
    with pytest.raises(ValueError, match=message):
        model.prefix(inputs, n_positions)


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen3_5", "lfm2_vl", "gemma4", "internvl_gpt_oss", "idefics3"])
def test_hybrids_sinks_and_shared_keys_continue_from_prefixes(name: str):
    model, inputs = HookedMLLM(tiny.build(name)), tiny.batch(name)
    n_positions = inputs["input_ids"].shape[1] - 9
    prefix = model.prefix(inputs, n_positions)
    expected = model(inputs)[:, n_positions:]
    assert_close(model(inputs, prefix=prefix), expected, atol=1e-5, rtol=1e-5)
    assert_close(logits_of_copies(model, inputs, prefix, 2)[1::2], expected, atol=1e-5, rtol=1e-5)
