"""Visual tokens that are learned queries: their roles are known, and they have no rectangles."""

import pytest
import torch

from tests.helpers import processors, tiny_family
from tests.helpers.pictures import random_picture
from tests.helpers.tiny_family import TinyFamily, decoder_embeddings

# Processors of transformers 5.23 make arrays of tensors in a way that numpy deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")


@pytest.fixture(scope="module", params=list(processors.QUERIES))
def family(request: pytest.FixtureRequest) -> TinyFamily:
    return tiny_family.build(request.param)


def test_learned_queries_have_positions_and_no_pixels(family: TinyFamily):
    inputs = family.prepare([random_picture((150, 100))])
    tokens, model_type = inputs.tokens, family.hf_model.config.model_type
    embeddings, other_embeddings = (decoder_embeddings(family, [random_picture((150, 100), seed)]) for seed in range(2))
    changed = (embeddings != other_embeddings).any(-1)
    assert torch.equal(changed, tokens.image[0])
    assert (tokens.media == torch.where(tokens.image, 0, -1)).all()
    assert family.processor.tokenizer.decode(inputs["input_ids"][tokens.question]) == "Which digit is red?"
    assert "without a grid" in repr(tokens)
    with pytest.raises(ValueError, match=f"visual tokens of {model_type} are learned queries.* has no pixels"):
        tokens.in_box((0, 0, 50, 50))


def test_roles_in_a_batch_of_learned_queries(family: TinyFamily):
    images = [random_picture((64, 64)), random_picture((97, 180), 1)]
    questions = ["Which digit is red?", "a?"]
    chat = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "seven"}]},
        {"role": "user", "content": questions[0]},
    ]
    inputs = family.prepare(images, [chat, questions[1]])
    decode = family.processor.tokenizer.decode
    for sample, question in enumerate(questions):
        tokens, ids = inputs.tokens[sample], inputs["input_ids"][sample][None]
        assert decode(ids[tokens.question]).strip() == question
        assert tokens.image.sum() == inputs.tokens[0].image.sum()
    assert decode(inputs["input_ids"][inputs.tokens.context]) == "What?seven"


@pytest.mark.parametrize("name", ["aria", "idefics2"])
def test_learned_queries_of_several_pictures(name: str):
    family = tiny_family.build(name)
    chat = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}, {"type": "image"}]},
        {"role": "assistant", "content": "seven"},
        {"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Which?"}]},
    ]
    inputs = family.prepare([random_picture((64, 64), seed) for seed in range(4)], chat)
    decode, tokens = family.processor.tokenizer.decode, inputs.tokens
    assert decode(inputs["input_ids"][tokens.context]) == "What?seven"
    assert decode(inputs["input_ids"][tokens.question]) == "Which?"
    assert tokens.media[tokens.image].tolist() == [media for media in range(4) for _ in range(4)]


@torch.no_grad()
def test_a_batch_of_learned_queries_is_its_samples_left_padded(family: TinyFamily):
    """Whatever side the tokenizer pads on; the instructions of a Q-Former stay where its positions begin."""
    family.processor.tokenizer.padding_side = "right"
    images = [random_picture((64, 64)), random_picture((97, 180), 1)]
    questions = ["Which digit is red?", "a?"]
    together = family.prepare(images, questions)
    logits = family.hf_model(**together).logits
    assert together.tokens.padding[1].any()
    for sample in range(2):
        alone = family.prepare([images[sample]], [questions[sample]])
        tokens = together.tokens[sample]
        real = ~tokens.padding[0]
        for name in ("role", "media", "view", "row"):
            assert torch.equal(getattr(tokens, name)[0, real], getattr(alone.tokens, name)[0]), name
        expected = family.hf_model(**alone).logits[0, -1]
        torch.testing.assert_close(logits[sample, -1], expected, atol=1e-4, rtol=1e-3)


def test_prompts_without_pictures(family: TinyFamily):
    inputs = family.prepare(None, ["You?", "Which digit is red?"])
    assert not inputs.tokens.image.any()
    assert family.processor.tokenizer.decode(inputs["input_ids"][inputs.tokens.question]).endswith("digit is red?")


@pytest.mark.parametrize("name", ["blip-2", "instructblip", "kosmos-2"])
@pytest.mark.parametrize("n", [0, 2])
def test_one_picture_a_question_where_the_processor_puts_it_first(name: str, n: int):
    images = [[random_picture((64, 64))] * n, [random_picture((64, 64))]]
    with pytest.raises(ValueError, match=f"each question needs exactly one picture, not {n}"):
        tiny_family.build(name).prepare(images, ["Which?", "What?"])


def test_template_that_ends_with_space():
    """Kosmos-2 strips its prompts; OPT does not."""
    for name in ("kosmos-2", "blip-2", "idefics2"):
        family = tiny_family.build(name)
        family.processor.chat_template = "\n" + family.processor.chat_template + "  \n"
        inputs = family.prepare(random_picture((64, 64)))
        text = family.processor.tokenizer.decode(inputs["input_ids"][inputs.tokens.question])
        assert text.strip() == "Which digit is red?", name


def test_processors_that_do_not_report_what_they_write():
    family = tiny_family.build("blip-2")
    family.hf_model.config.model_type = "another"
    with pytest.raises(ValueError, match="Blip2Processor does not report what it writes in place of a picture"):
        family.prepare([random_picture((64, 64))])
