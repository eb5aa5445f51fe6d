"""Arguments of a pass: each is read, or refused by name."""

from typing import Any

import jaxtyping
import pytest
import torch
from torch.testing import assert_close
from transformer_lens.utilities import lm_cross_entropy_loss

from corelens import Head, HookedMLLM, ablate
from corelens.hf.forward import argument_names, check_arguments
from tests.helpers import tiny


@pytest.fixture(scope="module")
def model() -> HookedMLLM:
    return HookedMLLM(tiny.build("llava"))


INPUTS = tiny.batch("llava")
QUERIES = torch.ones_like(INPUTS["input_ids"], dtype=torch.bool)
HOOKS = ablate([Head(0, 1)])

UNREAD: dict[str, tuple[str, Any]] = {
    "a misspelt tensor": ("'attention_maks'; the nearest are attention_mask", lambda m: m(INPUTS, attention_maks=1)),
    "a misspelt name in the inputs": ("'pixel_value'; .* pixel_values", lambda m: m({**INPUTS, "pixel_value": 1})),
    "queries of a plain pass": ("'queries'; give it to run_with_cache", lambda m: m(INPUTS, queries=QUERIES)),
    "hooks of a plain pass": ("'fwd_hooks'; give it to run_with_hooks", lambda m: m(INPUTS, fwd_hooks=HOOKS)),
    "hooks of a cached pass": ("'fwd_hooks'; give it to", lambda m: m.run_with_cache(INPUTS, fwd_hooks=HOOKS)),
    "a misspelt filter": ("nearest are names_filter", lambda m: m.run_with_cache(INPUTS, name_filter="x")),
    "misspelt hooks": ("nearest are fwd_hooks", lambda m: m.run_with_hooks(INPUTS, fwd_hook=HOOKS)),
    "attention that is not returned": ("output_attentions has no effect", lambda m: m(INPUTS, output_attentions=True)),
    "streams that are not returned": ("hook_resid_post", lambda m: m(INPUTS, output_hidden_states=True)),
    "another output": ("probs", lambda m: m(INPUTS, return_type="probs")),
    "labels after a prefix": ("takes no labels", lambda m: m(INPUTS, prefix=m.prefix(INPUTS, 30), labels=QUERIES)),
    "a loss after a prefix": ("takes no return", lambda m: m(INPUTS, prefix=m.prefix(INPUTS, 30), return_type="loss")),
    "a loss of a stream": ("takes no return_type='loss'", lambda m: m(INPUTS, stop_at_layer=1, return_type="loss")),
    "a layer too many": ("stop_at_layer=3 is no layer", lambda m: m(INPUTS, stop_at_layer=3)),
    "a hook behind the end": (
        "the hook on blocks.0.attn.hook_z never acts",
        lambda m: m.run_with_hooks(INPUTS, fwd_hooks=HOOKS, stop_at_layer=0),
    ),
    "a cache behind the end": (
        "the hook on blocks.2.hook_resid_post never acts",
        lambda m: m.run_with_cache(INPUTS, names_filter="blocks.2.hook_resid_post", stop_at_layer=1),
    ),
    "gradients of logits": (
        "calls backward on a loss",
        lambda m: m.run_with_cache(INPUTS, incl_bwd=True),
    ),
    "backward hooks that are gone": ("never act", lambda m: m.run_with_hooks(INPUTS, bwd_hooks=HOOKS)),
    "a misspelt argument of generate": ("max_new_token", lambda m: m.generate(INPUTS, max_new_token=1)),
}


@pytest.mark.parametrize("kind", UNREAD)
def test_an_argument_that_nothing_reads_raises_an_error(model: HookedMLLM, kind: str):
    message, call = UNREAD[kind]
    # Annotations are checked here, and name the argument too.
    with pytest.raises((TypeError, ValueError, jaxtyping.TypeCheckError), match=message):
        call(model)
    assert not any(point.has_hooks() for point in model.hook_points())


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_no_architecture_refuses_what_it_reads(name: str):
    check_arguments(tiny.batch(name) | {"use_cache": False}, argument_names(tiny.build(name)))


@torch.no_grad()
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_pass_that_stops_returns_the_stream_that_enters_the_layer(family: str):
    model, inputs = HookedMLLM(tiny.build(family)), tiny.batch(family)
    _, cache = model.run_with_cache(inputs)
    for stop in (0, 1, 2, -1):
        stream, part = model.run_with_cache(inputs, stop_at_layer=stop)
        assert_close(stream, cache["resid_pre", stop % 3])
        assert torch.equal(model(inputs, stop_at_layer=stop), stream)
        assert {int(name.split(".")[1]) for name in part if "." in name} == {*range(stop % 3 + 1)}
        assert "hook_embed" in part
    ablated = model.run_with_hooks(inputs, fwd_hooks=HOOKS, stop_at_layer=1)
    assert not torch.allclose(ablated, cache["resid_pre", 1], atol=1e-4)


@torch.no_grad()
def test_return_types_are_those_of_transformer_lens(model: HookedMLLM):
    logits, labels = model(INPUTS), INPUTS["input_ids"].masked_fill(INPUTS["attention_mask"] == 0, -100)
    loss = lm_cross_entropy_loss(logits, INPUTS["input_ids"], INPUTS["attention_mask"].bool())
    assert_close(model(INPUTS, return_type="loss"), loss)
    both = model(INPUTS, return_type="both")
    assert torch.equal(both[0], logits)
    assert_close(both[1], loss)
    assert model(INPUTS, return_type=None) is None
    assert torch.equal(model(INPUTS, labels=labels, return_type="logits"), logits)
    assert_close(model(INPUTS, labels=labels), model.hf_model(**INPUTS, labels=labels).loss)


def test_gradients_of_a_loss_are_cached(model: HookedMLLM):
    name = "blocks.1.attn.hook_z"
    _, cache = model.run_with_cache(INPUTS, names_filter=name, incl_bwd=True, return_type="loss")
    assert cache[f"{name}_grad"].any()
    model.zero_grad()
