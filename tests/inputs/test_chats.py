"""Errors about questions, chats and chat templates."""

from typing import Any

import pytest
from PIL import Image

from corelens import HookedMLLM
from corelens.inputs.chats import build_chats
from tests.helpers import processors, tiny
from tests.helpers.pictures import random_picture


@pytest.fixture(scope="module")
def model() -> HookedMLLM:
    return HookedMLLM(tiny.build("qwen3_vl"), processors.build("qwen3_vl"))


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return random_picture()


@pytest.mark.parametrize(("question", "kind"), [(None, "NoneType"), (Image.new("RGB", (4, 4)), "Image")])
def test_what_is_no_question_is_told_its_place(question: Any, kind: str):
    with pytest.raises(TypeError, match=rf"not {kind}; the pictures come before it, as in prepare\(image, question\)"):
        build_chats(question, "Which?", None, None)


@pytest.mark.parametrize(
    ("images", "question", "message"),
    [
        (None, "", "the question is empty"),
        (None, "  \n", "the question is empty"),
        (None, [], "there is no question"),
        (None, ["Which?", ""], "the question is empty"),
        ([None], ["a", "b"], "2 questions came with pictures for 1"),
        ("image", ["a", "b"], "2 questions came with one picture"),
        (
            None,
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}],
            "more pictures than the 0",
        ),
        (["image"], [{"role": "user", "content": "a"}], "1 of 1 pictures have no place in the chat"),
        (None, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "must end with the question"),
        (None, [[]], "the chat is empty"),
        (None, [{"role": "user", "content": [{"type": "audio"}]}], "type 'audio' cannot be prepared"),
        (None, "is <|image_pad|> red?", "which stands for a picture"),
    ],
)
def test_questions_and_pictures_that_do_not_fit(
    model: HookedMLLM, image: Image.Image, images: Any, question: Any, message: str
):
    images = image if images == "image" else [image] if images == ["image"] else images
    with pytest.raises(ValueError, match=message):
        model.prepare(images, question)


def test_without_processor_or_template(image: Image.Image):
    hf_model = tiny.build("qwen3_vl")
    with pytest.raises(ValueError, match="wrapped without a processor"):
        HookedMLLM(hf_model).prepare(image, "Which?")
    bare = processors.build("qwen3_vl")
    bare.chat_template = None
    with pytest.raises(ValueError, match=r"has no chat template.*processor\.chat_template = "):
        HookedMLLM(hf_model, bare).prepare(image, "Which?")
