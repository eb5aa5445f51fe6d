"""Errors about questions, chats and chat templates."""

import re
from typing import Any

import pytest
from PIL import Image

from corelens import HookedMLLM, Sample
from corelens.inputs.chats import build_chats, control_tokens
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
        (None, [{"role": "user", "content": None}], "is no message: it needs a `role`"),
        (None, [{"content": "a"}], "is no message: it needs a `role`"),
        (None, [{"role": "user", "content": ["a"]}], "'a' is no part of a message: it needs a `type`"),
        (None, [{"role": "user", "content": [{"text": "a"}]}], "is no part of a message: it needs a `type`"),
        (None, [{"role": "user", "content": [{"type": "text"}]}], "is no text part: `text` is a string"),
        (
            None,
            [{"role": "user", "content": [{"type": "text", "text": "a", "question": True}]}],
            "'question': True} is no text part: .*the string within it that is the question",
        ),
    ],
)
def test_questions_and_pictures_that_do_not_fit(
    model: HookedMLLM, image: Image.Image, images: Any, question: Any, message: str
):
    images = image if images == "image" else [image] if images == ["image"] else images
    with pytest.raises(ValueError, match=message):
        model.prepare(images, question)


CONTROL = {
    "the end of a turn": "which <|im_end|> digit is red?",
    "the beginning of a turn": "which<|im_start|>digit is red?",
    "the beginning of a picture": "<|vision_start|> which digit is red?",
    "the beginning of the text": "which digit <s>",
    "the end of the text": "</s>",
    "padding": "which <pad> digit",
}
"""Questions with a control token of the tokenizer in them."""


@pytest.mark.parametrize("kind", CONTROL)
def test_control_tokens_are_no_words(model: HookedMLLM, kind: str):
    with pytest.raises(ValueError, match="which the model reads as a control token and not as words"):
        model.prepare(None, CONTROL[kind])
    turns = [{"role": "system", "content": CONTROL[kind]}, {"role": "user", "content": "Which?"}]
    with pytest.raises(ValueError, match="control token"):
        model.prepare(None, turns)


def test_tokens_by_which_a_template_marks_turns_are_control_tokens():
    processor = processors.build("qwen3_vl")
    processor.tokenizer.add_tokens(["<think>", "<other>"])
    processor.chat_template += "<think>"
    assert control_tokens(processor, "a <think> of <other> & <|im_end|>") == ["<think>", "<|im_end|>"]


def test_without_processor_or_template(image: Image.Image):
    hf_model = tiny.build("qwen3_vl")
    with pytest.raises(ValueError, match="wrapped without a processor"):
        HookedMLLM(hf_model).prepare(image, "Which?")
    bare = processors.build("qwen3_vl")
    bare.chat_template = None
    with pytest.raises(ValueError, match=r"has no chat template.*processor\.chat_template = "):
        HookedMLLM(hf_model, bare).prepare(image, "Which?")


QUESTION = "which digit is red ?"
OTHER = "what colour is the 7 ?"
CONTEXT = "copy 1 2 3"


def user(*parts: str | dict[str, Any]) -> dict[str, Any]:
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return {"role": "user", "content": content}


PICTURE = {"type": "image"}
CHATS = {
    "a string": (1, QUESTION),
    "after two pictures": (2, QUESTION),
    "after text and picture": (1, [user(CONTEXT, PICTURE, QUESTION)]),
    "before the picture": (1, [user({"type": "text", "text": QUESTION, "question": QUESTION}, PICTURE, CONTEXT)]),
    "between options": (
        1,
        [user(PICTURE, {"type": "text", "text": f"{CONTEXT} {QUESTION} {CONTEXT}", "question": QUESTION})],
    ),
    "asked twice": (
        1,
        [user(PICTURE, {"type": "text", "text": f"{QUESTION} {CONTEXT} {QUESTION}", "question": QUESTION})],
    ),
    "in the last of three turns": (
        2,
        [user(PICTURE, OTHER), {"role": "assistant", "content": "red"}, user(CONTEXT, PICTURE, QUESTION)],
    ),
    "of a sample with options": (0, Sample("s", QUESTION, "1", instruction=f" {CONTEXT}").chat),
    "of a haystack": (
        2,
        Sample(
            "s", QUESTION, "1", (random_picture(), random_picture()),
            prompt=(f"{CONTEXT} ", 0, f" {CONTEXT} ", 1, f" {CONTEXT}\n\n{QUESTION} {CONTEXT}"),
        ).chat,
    ),
}  # fmt: skip


def test_the_question_is_found_among_other_text_alone_and_in_a_padded_batch(toy_model: HookedMLLM):
    pictures = [[random_picture()] * n for n, _ in CHATS.values()]
    batch = toy_model.prepare(pictures, [chat for _, chat in CHATS.values()])
    decode = toy_model.processor.tokenizer.decode
    for sample, (name, (_, chat)) in enumerate(CHATS.items()):
        single = toy_model.prepare([pictures[sample]], [chat])
        for inputs, row in ((batch, sample), (single, 0)):
            positions = inputs.tokens.question[row].nonzero().flatten()
            assert decode(inputs["input_ids"][row, positions]).split() == QUESTION.split(), name
            assert positions.diff().eq(1).all(), name
            n_context = int(inputs.tokens.context[row].sum())
            assert n_context % len(CONTEXT.split()) == {"asked twice": 1, "in the last of three turns": 3}.get(name, 0)
    # Asked twice: the second time counts.
    row = list(CHATS).index("asked twice")
    ids = batch["input_ids"][row].tolist()
    last = len(ids) - 1 - ids[::-1].index(toy_model.processor.tokenizer.convert_tokens_to_ids("?"))
    assert batch.tokens.question[row, last]


def test_a_question_that_is_not_in_the_prompt(toy_model: HookedMLLM):
    message = re.escape(f"the question {QUESTION!r} cannot be located in the prompt: it does not occur in {OTHER!r}.")
    with pytest.raises(ValueError, match=message):
        toy_model.prepare(question=[user({"type": "text", "text": OTHER, "question": QUESTION})])
    with pytest.raises(ValueError, match=f"sample s: the question {re.escape(repr(QUESTION))} cannot be located"):
        Sample("s", QUESTION, "1", prompt=(OTHER,))
    with pytest.raises(ValueError, match=f"sample s: the question {re.escape(repr(QUESTION + CONTEXT))} cannot be"):
        Sample("s", QUESTION, "1", prompt=(QUESTION,), instruction=CONTEXT)
