"""Sessions against whole passes, one for each intervention."""

from functools import partial
from typing import Any

import pytest
import torch
from torch.testing import assert_close

import corelens as cl
from corelens import Head, HookedMLLM, Role, Session, TokenMap, ablate, attention_knockout
from corelens.causal import session as session_module
from corelens.inputs.prepare import PreparedInputs, repeat_inputs
from tests.helpers import processors, tiny
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


def halve_head(z: torch.Tensor, hook: Any, head: int) -> None:
    z[:, :, head] *= 0.5


@torch.no_grad()
def test_hooks_of_every_kind_pack_and_leave_nothing(model: HookedMLLM):
    """Interventions of different layers and kinds in one pass, and none at all."""
    inputs = answered_prompts(model)
    session = Session(model, inputs)
    interventions = [
        ablate([Head(1, 2), Head(2, 0)], positions="last"),
        attention_knockout([Head(1, 1)], "question", "image"),
        ablate([Head(2, 3)], "zero_query", positions="answer"),
        [],
    ]
    attributes = {name: sorted(module.__dict__) for name, module in model.hf_model.named_modules()}
    for group in (interventions[:2], interventions):
        for hooks, logits in zip(group, session.logits_of_each(group), strict=True):
            expected = model.run_with_hooks(inputs, fwd_hooks=hooks)[:, session.first :]
            real = ~inputs.tokens.padding[:, session.first :]
            assert_close(logits[real], expected[real], atol=1e-5, rtol=1e-5)
    assert {name: sorted(module.__dict__) for name, module in model.hf_model.named_modules()} == attributes
    assert not any(point.has_hooks() or point.ctx for point in model.hook_points())


@torch.no_grad()
def test_layers_that_an_intervention_does_not_change_do_not_run(model: HookedMLLM):
    inputs = answered_prompts(model)
    session = Session(model, inputs)
    layers_run: list[int] = []
    handles = [
        site.attentions["attn"].module.register_forward_pre_hook(lambda *_, layer=site.layer: layers_run.append(layer))
        for site in model.hf_layers
    ]
    session.logits(ablate([Head(2, 0)], positions="from_question"))
    session.logits(ablate([Head(1, 0)]))
    for handle in handles:
        handle.remove()
    # The second acts in the prompt before the question: the whole prompt is recorded once, then run from layer 1.
    assert layers_run == [2, 0, 1, 2, 1, 2]


@torch.no_grad()
def test_whole_prompts_of_a_batch_of_one_share_passes(model: HookedMLLM, monkeypatch: pytest.MonkeyPatch):
    """One pass for each would run the last layer five times more; a hook of unknown kind runs by itself."""
    pictures = [uneven_picture(0), uneven_picture(0)]
    inputs = cl.append_answers(model, model.prepare([pictures], [QUESTION]), ["It is blue"])
    interventions = [
        ablate([Head(1, 2)]),
        ablate([Head(2, 1)]),
        attention_knockout([Head(1, 1)], "image", "structural"),
        ablate([Head(0, 3)], "zero_query", positions="image") + ablate([Head(2, 2)]),
        [],
    ]
    plain_function = [("blocks.1.attn.hook_z", partial(halve_head, head=0))]
    expected = [model.run_with_hooks(inputs, fwd_hooks=hooks) for hooks in (*interventions, plain_function)]
    batch_sizes: list[int] = []
    monkeypatch.setattr(session_module, "POSITIONS_PER_PASS", 5 * inputs.shape[1])
    session = Session(model, inputs)
    session.logits_of_each(interventions)
    handle = model.hf_layers[2].block.register_forward_pre_hook(lambda _, args: batch_sizes.append(len(args[0])))
    results = session.logits_of_each(interventions) + session.logits_of_each([plain_function, interventions[0]])
    handle.remove()
    assert batch_sizes == [5, 1, 1]
    for logits, expected_logits in zip(results, [*expected, expected[0]], strict=True):
        assert_close(logits, expected_logits[:, session.first :], atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(session_module, "POSITIONS_PER_PASS", 2 * inputs.shape[1] - 1)
    assert Session(model, inputs)._max_copies == 1


@torch.no_grad()
def test_what_does_not_come_in_copies_runs_one_by_one():
    model = HookedMLLM(tiny.build("lighton_ocr"), processors.build("lighton_ocr"))
    inputs = model.prepare(uneven_picture(0), QUESTION)
    session, hooks = Session(model, inputs), ablate([Head(1, 1)])
    assert session._max_copies == 1
    expected = model.run_with_hooks(inputs, fwd_hooks=hooks)[:, session.first :]
    assert_close(session.logits_of_each([hooks, hooks])[1], expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="times=3 without a prefix needs a batch of one, and this one has 2 samples"):
        repeat_inputs(model.prepare([uneven_picture(0)] * 2, [QUESTION] * 2), 3)


@torch.no_grad()
@pytest.mark.parametrize("name", ["gemma4", "gemma3n", "qwen3_5", "paligemma", "mllama", "idefics"])
def test_sessions_where_layers_share_keys_or_prompts_look_ahead(name: str):
    """Layers that cannot be skipped and prefixes that cannot be shared are run."""
    model, tensors = HookedMLLM(tiny.build(name)), tiny.batch(name, padded=False)
    role = torch.full_like(tensors["input_ids"], int(Role.STRUCTURAL))
    role[:, -9:] = int(Role.QUESTION)
    nowhere, nan = torch.full_like(role, -1), torch.full((*role.shape, 4), torch.nan)
    places = {place: nowhere for place in ("media", "view", "row", "column")}
    tokens = TokenMap(role, **places, overview=nowhere > 0, box=nan, seconds=nan[..., :2], sizes=((), ()))
    inputs = PreparedInputs(tensors, tokens)
    session = Session(model, inputs)
    for positions in ("question", None):
        for head in (model.heads[0], model.heads[-1]):
            hooks = ablate([head], positions=positions)
            expected = model.run_with_hooks(inputs, fwd_hooks=hooks)[:, session.first :]
            assert_close(session.logits_of_each([hooks, hooks])[1], expected, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_prompts_with_pictures_and_questions_of_different_lengths_run_whole(model: HookedMLLM):
    inputs = two_prompts(model, ["Which?", LONG_QUESTION])
    session, hooks = Session(model, inputs), ablate([Head(1, 1)], positions="from_question")
    assert session.prefix is None
    real = ~inputs.tokens.padding
    expected = model.run_with_hooks(inputs, fwd_hooks=hooks)[real]
    assert_close(session.logits(hooks)[real], expected, atol=1e-5, rtol=1e-5)


def test_a_session_needs_no_answers(model: HookedMLLM):
    assert Session(model, two_prompts(model)).first > 0
