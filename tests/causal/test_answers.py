"""Teacher-forced answers: the positions that predict them attend as in generation."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from corelens import HookedMLLM, Role, TokenMap
from corelens.causal.answers import answer_ids, answer_positions, answer_targets, append_answers
from corelens.inputs.prepare import PreparedInputs
from tests.helpers import processors, tiny
from tests.helpers.prompts import family_model, two_prompts
from tests.helpers.questions import samples


@pytest.fixture(scope="module", params=["qwen3_vl", "llava"])
def vlm(request: pytest.FixtureRequest) -> HookedMLLM:
    """A tiny random model that reads pictures."""
    return HookedMLLM(tiny.build(request.param), processors.build(request.param))


@torch.no_grad()
@pytest.mark.parametrize(
    "family", [*tiny.FAMILIES, "paligemma", "mllama", "qwen3_5", "idefics3", "llama4", "ernie4_5_vl_moe"]
)
def test_positions_that_say_an_answer_attend_as_in_generation(family: str):
    model = HookedMLLM(tiny.build(family))
    tensors = tiny.batch(family)
    shape = tuple(tensors["input_ids"].shape)
    nothing = torch.full(shape, -1)
    tokens = TokenMap(
        role=torch.where(tensors["attention_mask"] == 1, Role.QUESTION, Role.PADDING), media=nothing, view=nothing,
        overview=nothing > 0, row=nothing, column=nothing, box=torch.full((*shape, 4), torch.nan),
        seconds=torch.full((*shape, 2), torch.nan), sizes=((), ()),
    )  # fmt: skip
    n, names = shape[1], model.attn_names("pattern")
    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    with model.hooks(fwd_hooks=[(name, lambda p, hook: rows[hook.name].append(p[:, :, -1:])) for name in names]):
        generated = model.generate(
            tiny.generation_inputs(family, tensors), max_new_tokens=4, do_sample=False, eos_token_id=None
        )
    answers = generated[:, n:].tolist()
    answers[1] = answers[1][:2]  # a shorter one, padded behind
    inputs = append_answers(model, PreparedInputs(tensors, tokens), answers)
    positions = answer_positions(inputs.tokens)
    assert positions.sum(-1).tolist() == inputs.tokens.answer.sum(-1).tolist() == [4, 2]
    assert answer_targets(inputs)[positions].tolist() == answers[0] + answers[1]
    assert inputs.tokens.last.nonzero().tolist() == [[0, n - 1], [1, n - 1]]
    _, cache = model.run_with_cache(inputs, queries=positions, names_filter=names)
    for name in names:
        for step, row in enumerate(rows[name]):
            for sample in range(2):
                if step < len(answers[sample]):
                    rows_of_answer = cache[name][sample, :, step, : row.shape[-1]]
                    assert_close(rows_of_answer, row[sample, :, 0], atol=1e-5, rtol=1e-4)


def test_answers_that_cannot_follow_are_named(vlm: HookedMLLM):
    (sample,) = samples(1)
    inputs = vlm.prepare(list(sample.images), sample.question)
    with pytest.raises(ValueError, match="the answer '' has no token"):
        append_answers(vlm, inputs, [""])
    with pytest.raises(ValueError, match="2 answers were given for 1 prompts"):
        append_answers(vlm, inputs, ["7", "8"])
    beside = HookedMLLM(tiny.build("florence2"))
    with pytest.raises(TypeError, match="has an encoder and a decoder: its answers do not follow the prompt"):
        append_answers(beside, inputs, ["7"])


OPENINGS = {
    "a line": ("{role}\n", "7"),
    "a colon, and earlier answers after a space": (None, "Ġ7"),
    "a colon, and earlier answers right after it": ("{role}:", "7"),
    "a space": ("{role}: ", "7"),
    "a control token": ("<|{role}|>", "7"),
}
"""Ends of chat templates, and the token by which a model that was trained with them says 7."""


@pytest.mark.parametrize("end", OPENINGS)
def test_an_answer_begins_with_the_token_that_the_model_would_say(end: str):
    turn, token = OPENINGS[end]
    processor = processors.build("llava")
    processor.tokenizer.add_tokens(["<|assistant|>"], special_tokens=True)
    processor.chat_template = processors.LLAVA_TEMPLATE if turn is None else processors.template("<image>", turn)
    assert processor.tokenizer.convert_ids_to_tokens(answer_ids(processor, "7")) == [token]
    assert processor.tokenizer.convert_ids_to_tokens(answer_ids(processor, " 7")) == ["Ġ7"]


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def model(request: pytest.FixtureRequest) -> HookedMLLM:
    return family_model(request.param)


def test_answers_that_cannot_be_expected(model: HookedMLLM):
    with pytest.raises(ValueError, match="1 answers were given for 2 prompts"):
        append_answers(model, two_prompts(model), ["seven"])
    with pytest.raises(ValueError, match="the answer '' has no token"):
        append_answers(model, two_prompts(model), ["seven", ""])
