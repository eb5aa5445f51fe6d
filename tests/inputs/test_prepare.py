"""Prepared inputs: the processor's tensors with a map of their positions."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from corelens import Box, Evidence, HookedMLLM, Sample, append_answers, scan
from corelens.inputs.prepare import PreparedInputs, prepare
from tests.helpers import processors, tiny
from tests.helpers.pictures import random_picture


@pytest.fixture(scope="module", params=["qwen3_vl", "qwen2_5_vl", "llava"])
def family_model(request: pytest.FixtureRequest) -> HookedMLLM:
    return HookedMLLM(tiny.build(request.param), processors.build(request.param))


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return random_picture()


def test_prepared_inputs_show_themselves_in_a_line(family_model: HookedMLLM):
    single = family_model.prepare(random_picture((64, 64)), "a?")
    text = f"{family_model.prepare([random_picture((64, 64))] * 4, 'a?')!r}"
    shape = repr(single.tokens).rpartition("(")[2].rstrip(")")
    assert text.startswith("PreparedInputs(input_ids, ")
    assert f"(4 media of {shape})" in text
    assert "tensor" not in text
    assert len(text) < 300


def test_prepared_tensors_are_those_of_the_processor(family_model: HookedMLLM):
    image, question = random_picture((97, 180)), "Which digit is red?"
    chat = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]
    expected = family_model.processor.apply_chat_template(
        chat, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    for inputs in (
        family_model.prepare(image, question),
        family_model.prepare(question=chat),
        family_model.prepare([image], [question]),
    ):
        assert set(inputs) >= {"input_ids", "attention_mask", "pixel_values"}
        for name, tensor in inputs.items():
            assert torch.equal(tensor, expected[name]), name


def test_a_family_without_known_geometry_still_prepares_and_says_so(image: Image.Image):
    config = SimpleNamespace(model_type="some_other_model", image_token_id=tiny.IMAGE)
    inputs = prepare(processors.build("llava"), config, image, "Which?")
    assert inputs.tokens.image.sum() == 16
    with pytest.raises(ValueError, match="how the visual tokens of some_other_model tile a picture is not known"):
        inputs.tokens.in_box((0, 0, 9, 9))


def test_a_processor_that_does_not_belong_to_the_model(image: Image.Image):
    processor = processors.build("llava")
    processor.patch_size = 28
    processor.num_additional_image_tokens = 3
    with pytest.raises(ValueError, match="became 6 visual tokens, but its grid is 2 x 2"):
        prepare(processor, tiny.build("llava").config, image, "Which?")


def saved(inputs: PreparedInputs) -> PreparedInputs:
    file = BytesIO()
    torch.save(inputs, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[PreparedInputs], Any]] = {
    "copy": copy.copy,
    "deep copy": copy.deepcopy,
    "copy of a mapping": lambda inputs: inputs.copy(),
    "pickle": lambda inputs: pickle.loads(pickle.dumps(inputs)),
    "saved by torch": saved,
    "with more tensors": lambda inputs: inputs | {"labels": inputs["input_ids"]},
    "more tensors with them": lambda inputs: {"labels": inputs["input_ids"]} | inputs,
    "with the inputs of another prompt before them": lambda inputs: longer(inputs) | inputs,
    "other words": lambda inputs: inputs | {"input_ids": inputs["input_ids"] + 0},
}
"""Copies of inputs and merged ones."""


def longer(inputs: PreparedInputs) -> PreparedInputs:
    """Inputs of another length."""
    ids = inputs["input_ids"].repeat(1, 2)
    roles = {name: torch.cat([tensor] * 2, 1) for name, tensor in inputs.tokens.position_tensors().items()}
    return PreparedInputs({"input_ids": ids}, replace(inputs.tokens, **roles))


@pytest.mark.parametrize("kind", COPIES)
def test_copies_keep_their_map(family_model: HookedMLLM, image: Image.Image, kind: str):
    inputs = family_model.prepare(image, "Which?")
    other = COPIES[kind](inputs)
    assert isinstance(other, PreparedInputs)
    assert torch.equal(other.tokens.role, inputs.tokens.role)
    assert torch.equal(other["input_ids"], inputs["input_ids"])
    assert torch.equal(family_model(other), family_model(inputs)) or "labels" in other


def test_merged_inputs_have_the_map_of_their_token_ids(family_model: HookedMLLM, image: Image.Image):
    inputs = family_model.prepare(image, "Which?")
    other = longer(inputs)
    assert torch.equal((inputs | other).tokens.role, other.tokens.role)
    with pytest.raises(ValueError, match=r"are another prompt than these inputs .* come without a token map"):
        _ = inputs | {"input_ids": other["input_ids"]}
    with pytest.raises(ValueError, match="are another prompt"):
        inputs |= dict(other)
    inputs |= other
    assert torch.equal(inputs.tokens.role, other.tokens.role)


LIMITS: dict[str, tuple[dict[str, Any], bool]] = {
    "the length": ({}, False),
    "one less": ({"max_position_embeddings": -1}, True),
    "one less, scaled": (
        {"max_position_embeddings": -1, "rope_parameters": {"rope_type": "linear", "factor": 2.0}}, False
    ),
    "one less, scaled to a half": (
        {
            "max_position_embeddings": -1,
            "rope_parameters": {"a": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8}},
        },
        True,
    ),
}  # fmt: skip
"""Changes of a context that is as long as the prompt, and whether the prompt is too long then."""


@pytest.mark.parametrize("kind", LIMITS)
def test_prompts_longer_than_the_context_are_refused(image: Image.Image, kind: str):
    model = HookedMLLM(tiny.build("qwen3_vl"), processors.build("qwen3_vl"))
    inputs, text = model.prepare(image, "Which?"), model.hf_model.config.get_text_config()
    n = inputs["input_ids"].shape[1]
    change, is_too_long = LIMITS[kind]
    text.max_position_embeddings = n + change.get("max_position_embeddings", 0)
    text.rope_parameters = change.get("rope_parameters", {})
    # Padding is none of a prompt's length.
    for questions in ("Which?", ["Which?", "?"]):
        images = image if isinstance(questions, str) else [image, None]
        if is_too_long:
            message = rf"the prompt has {n} tokens, and the model was made for {n - 1} \(max_position_embeddings"
            with pytest.raises(ValueError, match=message):
                model.prepare(images, questions)
        else:
            model.prepare(images, questions)
    if kind == "the length":
        with pytest.raises(ValueError, match=rf"has {n + 1} tokens, and the model was made for {n} "):
            append_answers(model, inputs, ["7"])


def test_a_scan_leaves_prompts_out_that_are_too_long(image: Image.Image):
    model = HookedMLLM(tiny.build("qwen3_vl"), processors.build("qwen3_vl"))
    evidence = (Evidence(Box(0, 0, 20, 20)),)
    short = Sample("short", "a?", "7", (random_picture((56, 56)),), evidence)
    long = Sample("long", "a?", "7", (random_picture((224, 224)),), evidence)
    model.hf_model.config.get_text_config().max_position_embeddings = 40
    with pytest.warns(UserWarning, match="1 of 2 samples cannot be measured; the first, long: the prompt has"):
        scores = scan(model, [short, long])
    assert scores.samples == ("short",)


def test_inputs_move_with_their_map(family_model: HookedMLLM, image: Image.Image):
    inputs = family_model.prepare(image, "Which?").to("meta")
    assert inputs["input_ids"].device.type == inputs.tokens.role.device.type == "meta"
