"""Where visual tokens stand, by family: what each rectangle holds decides the token's own embedding most."""

from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from corelens.inputs.prepare import prepare
from tests.helpers import processors, tiny
from tests.helpers.architectures import ARCHITECTURES
from tests.inputs import test_token_geometry

# Processors of transformers 5.23 make arrays of tensors in a way that numpy deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

FAMILIES = [name for name in processors.FAMILIES if name not in test_token_geometry.FAMILIES]
SIZES = [(112, 96), (150, 100), (97, 180), (64, 64)]
LARGER: dict[str, dict[str, Any]] = {
    "gemma4": dict(vision_config=dict(position_embedding_size=64)),
    "molmo2": dict(vision_config=dict(image_size=[70, 70])),
    "aria": dict(vision_config=dict(image_size=980, patch_size=70), projector_patch_to_query_dict={196: 4}),
    "kosmos-2": dict(latent_query_num=64),
    "phi4_multimodal": dict(vision_config=dict(image_size=128, crop_size=128, patch_size=4)),
}
"""Towers for larger pictures than the tiny architectures' own."""


@dataclass
class Seeing:
    """A model and its processor. Geometry does not depend on hooks, so that no decoder is too unusual."""

    hf_model: Any
    processor: Any

    def prepare(self, images: Any, question: Any = "Which digit is red?") -> Any:
        return prepare(self.processor, self.hf_model.config, images, question)


@pytest.fixture(scope="module", params=processors.families(FAMILIES))
def seeing(request: pytest.FixtureRequest) -> Seeing:
    return build(request.param)


def build(family: str) -> Seeing:
    architecture = ARCHITECTURES[family]
    config = dict(architecture.config)
    for key, value in LARGER.get(family, {}).items():
        config[key] = config[key] | value if key.endswith("_config") else value
    with patch.dict(ARCHITECTURES, {family: replace(architecture, config=config)}):
        hf_model = tiny.build(family)
    with torch.no_grad():
        # A random tower that mixes tokens weakly, so that a feature tells which pixels it comes from.
        for name, parameter in hf_model.get_encoder("image").named_parameters():
            if any(part in name for part in ("out_proj", "attn.proj", "o_proj", "wo.")):
                parameter.mul_(0.05)
    return Seeing(hf_model, processors.build(family))


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    width, height = size
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


class _Seen(Exception):
    pass


@torch.no_grad()
def embeddings(model: Seeing, images: list[Image.Image]) -> torch.Tensor:
    """What the first layer of the decoder gets at every position."""
    found = []

    def keep(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        found.append(hidden[0].flatten(1))  # some decoders have several residual streams
        raise _Seen

    modules = model.hf_model.get_decoder().named_modules()
    first = next(module for name, module in modules if name.endswith("layers.0"))
    handle = first.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        model.hf_model(**model.prepare(images))
    except _Seen:
        return found[0]
    finally:
        handle.remove()
    raise AssertionError("the decoder did not run")


def hits(model: Seeing, images: list[Image.Image], boxes: torch.Tensor | None = None) -> list[bool]:
    """For sampled tokens of all pictures: whether their own embedding changes most when their pixels change."""
    tokens = model.prepare(images).tokens
    boxes = tokens.box[0] if boxes is None else boxes
    before, found = embeddings(model, images), []
    for media, image in enumerate(images):
        for overview in tokens.overview[tokens.media == media].unique():
            same = (tokens.image & (tokens.media == media) & (tokens.overview == overview))[0].nonzero().flatten()
            for token in np.random.default_rng(0).choice(same, min(8 // len(images), len(same)), replace=False):
                left, top, right, bottom = boxes[token].tolist()
                # The inner part: resizing mixes pixels across the edges of rectangles.
                x, y = (right - left) / 4, (bottom - top) / 4
                columns = slice(max(0, int(left + x)), max(0, int(np.ceil(right - x))))
                rows = slice(max(0, int(top + y)), max(0, int(np.ceil(bottom - y))))
                changed = np.array(image)
                if not changed[rows, columns].size:  # padding
                    continue
                changed[rows, columns] = 255 - changed[rows, columns] // 8
                other = [*images[:media], Image.fromarray(changed), *images[media + 1 :]]
                moved = (embeddings(model, other) - before).norm(dim=-1)
                found.append(bool(same[moved[same].argmax()] == token))
    return found


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_changing_pixels_of_a_token_changes_its_embedding_most(seeing: Seeing, size: tuple[int, int]):
    found = hits(seeing, [picture(size)])
    assert len(found) >= 3
    assert np.mean(found) >= 0.95, f"{sum(found)} of {len(found)}"


def test_two_pictures_in_a_prompt(seeing: Seeing):
    images = [picture((97, 180), 1), picture((150, 100), 2)]
    found = hits(seeing, images)
    assert np.mean(found) >= 0.95, f"{sum(found)} of {len(found)}"


@pytest.mark.parametrize("wrong", ["transposed", "shifted"])
def test_the_check_notices_wrong_rectangles(seeing: Seeing, wrong: str):
    """Rows and columns swapped, or every rectangle moved by one cell."""
    image = picture((150, 100))
    tokens = seeing.prepare([image]).tokens
    boxes = tokens.box[0].clone()
    for view in tokens.view[tokens.image].unique():
        own = (tokens.image & (tokens.view == view))[0].nonzero().flatten()
        order = torch.arange(len(own)).view(tokens.grid_shape(0, int(view)))
        other = order.T.flatten() if wrong == "transposed" else order.roll(1, 1).flatten()
        boxes[own] = boxes[own[other]]
    assert np.mean(hits(seeing, [image], boxes)) < 0.6


def test_pixels_reach_visual_tokens_and_no_others(seeing: Seeing):
    """Delimiters, row ends and separators are structural, whatever their id."""
    one, other = ([picture((97, 180), seed), picture((150, 100), seed + 1)] for seed in (1, 3))
    inputs = seeing.prepare(one)
    tokens = inputs.tokens
    moved = (embeddings(seeing, one) != embeddings(seeing, other)).any(-1)
    assert torch.equal(moved, tokens.image[0])
    assert not tokens.box[tokens.image].isnan().any()
    assert tokens.box[~tokens.image].isnan().all()
    assert seeing.processor.tokenizer.decode(inputs["input_ids"][tokens.question]) == "Which digit is red?"
    assert not tokens.context.any()


def test_rectangles_tile_the_picture(seeing: Seeing):
    for size in SIZES:
        tokens = seeing.prepare([picture(size)]).tokens
        for views in (tokens.overview, ~tokens.overview):
            boxes = tokens.box[tokens.image & views]
            if len(boxes):
                inner = boxes.clamp(min=0).minimum(torch.tensor([*size, *size]))
                areas = (inner[:, 2] - inner[:, 0]) * (inner[:, 3] - inner[:, 1])
                torch.testing.assert_close(areas.sum(), torch.tensor(float(size[0] * size[1])), rtol=0.02, atol=0)


def test_a_batch_is_its_samples_left_padded(seeing: Seeing):
    """Different pictures, numbers of pictures and questions; one sample has none."""
    images = [picture((64, 64)), [picture((97, 180), 1), picture((150, 100), 2)], None]
    questions = ["Which digit is red?", "What colour is the 7?", "You?"]
    together = seeing.prepare(images, questions)
    for index in range(3):
        alone = seeing.prepare([images[index]], [questions[index]])
        n = alone["input_ids"].shape[1]
        assert torch.equal(together["input_ids"][index, -n:], alone["input_ids"][0])
        assert together.tokens.padding[index, :-n].all()
        mine = together.tokens[index]
        for name in ("role", "media", "view", "overview", "row", "column"):
            assert torch.equal(getattr(mine, name)[:, -n:], getattr(alone.tokens, name)), name
        assert torch.equal(mine.box[:, -n:].nan_to_num(-1), alone.tokens.box.nan_to_num(-1))
        assert mine.sizes == alone.tokens.sizes
    assert together.tokens.media[1].max() == 1


# --- learned queries ---


@pytest.fixture(scope="module", params=list(processors.QUERIES))
def querying(request: pytest.FixtureRequest) -> Seeing:
    return build(request.param)


def test_learned_queries_have_positions_and_no_pixels(querying: Seeing):
    inputs = querying.prepare([picture((150, 100))])
    tokens, model_type = inputs.tokens, querying.hf_model.config.model_type
    moved = (embeddings(querying, [picture((150, 100))]) != embeddings(querying, [picture((150, 100), 1)])).any(-1)
    assert torch.equal(moved, tokens.image[0])
    assert (tokens.media == torch.where(tokens.image, 0, -1)).all()
    assert querying.processor.tokenizer.decode(inputs["input_ids"][tokens.question]) == "Which digit is red?"
    assert "without a grid" in repr(tokens)
    with pytest.raises(ValueError, match=f"visual tokens of {model_type} are learned queries.* has no pixels"):
        tokens.in_box((0, 0, 50, 50))


def test_roles_in_a_batch_of_learned_queries(querying: Seeing):
    images = [picture((64, 64)), picture((97, 180), 1)]
    questions = ["Which digit is red?", "a?"]
    chat = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "seven"}]},
        {"role": "user", "content": questions[0]},
    ]
    inputs = querying.prepare(images, [chat, questions[1]])
    decode = querying.processor.tokenizer.decode
    for sample, asked in enumerate(questions):
        tokens, ids = inputs.tokens[sample], inputs["input_ids"][sample][None]
        assert decode(ids[tokens.question]).strip() == asked
        assert tokens.image.sum() == inputs.tokens[0].image.sum()
    assert decode(inputs["input_ids"][inputs.tokens.context]) == "What?seven"


@pytest.mark.parametrize("family", ["aria", "idefics2"])
def test_learned_queries_of_several_pictures(family: str):
    model = build(family)
    chat = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}, {"type": "image"}]},
        {"role": "assistant", "content": "seven"},
        {"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Which?"}]},
    ]
    inputs = model.prepare([picture((64, 64), seed) for seed in range(4)], chat)
    decode, tokens = model.processor.tokenizer.decode, inputs.tokens
    assert decode(inputs["input_ids"][tokens.context]) == "What?seven"
    assert decode(inputs["input_ids"][tokens.question]) == "Which?"
    assert tokens.media[tokens.image].tolist() == [media for media in range(4) for _ in range(4)]


@torch.no_grad()
def test_a_batch_of_learned_queries_is_its_samples_left_padded(querying: Seeing):
    """Whatever side the tokenizer pads on; the instructions of a Q-Former stay where its positions begin."""
    querying.processor.tokenizer.padding_side = "right"
    images = [picture((64, 64)), picture((97, 180), 1)]
    questions = ["Which digit is red?", "a?"]
    together = querying.prepare(images, questions)
    logits = querying.hf_model(**together).logits
    assert together.tokens.padding[1].any()
    for sample in range(2):
        alone = querying.prepare([images[sample]], [questions[sample]])
        mine, own = together.tokens[sample], alone.tokens
        kept = ~mine.padding[0]
        for name in ("role", "media", "view", "row"):
            assert torch.equal(getattr(mine, name)[0, kept], getattr(own, name)[0]), name
        expected = querying.hf_model(**alone).logits[0, -1]
        torch.testing.assert_close(logits[sample, -1], expected, atol=1e-4, rtol=1e-3)


def test_prompts_without_pictures(querying: Seeing):
    inputs = querying.prepare(None, ["You?", "Which digit is red?"])
    assert not inputs.tokens.image.any()
    assert querying.processor.tokenizer.decode(inputs["input_ids"][inputs.tokens.question]).endswith("digit is red?")


@pytest.mark.parametrize("family", ["blip-2", "instructblip", "kosmos-2"])
@pytest.mark.parametrize("n", [0, 2])
def test_one_picture_a_question_where_the_processor_puts_it_first(family: str, n: int):
    images = [[picture((64, 64))] * n, [picture((64, 64))]]
    with pytest.raises(ValueError, match=f"each question needs exactly one picture, not {n}"):
        build(family).prepare(images, ["Which?", "What?"])


def test_template_that_ends_with_space():
    """Kosmos-2 strips its prompts; OPT does not."""
    for family in ("kosmos-2", "blip-2", "idefics2"):
        model = build(family)
        model.processor.chat_template = "\n" + model.processor.chat_template + "  \n"
        inputs = model.prepare(picture((64, 64)))
        said = model.processor.tokenizer.decode(inputs["input_ids"][inputs.tokens.question])
        assert said.strip() == "Which digit is red?", family


def test_processors_that_do_not_say_what_they_write():
    model = build("blip-2")
    model.hf_model.config.model_type = "another"
    with pytest.raises(ValueError, match="Blip2Processor does not report what it writes in place of a picture"):
        model.prepare([picture((64, 64))])
