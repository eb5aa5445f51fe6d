"""Prepared inputs: the processor's tensors with a map of their positions."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from corelens import HookedMLLM
from corelens.inputs.prepare import prepare
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


def test_inputs_move_with_their_map(family_model: HookedMLLM, image: Image.Image):
    inputs = family_model.prepare(image, "Which?").to("meta")
    assert inputs["input_ids"].device.type == inputs.tokens.role.device.type == "meta"
