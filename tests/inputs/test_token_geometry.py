"""Rectangles of visual tokens by family, checked by the vision tower: a token's own pixels change its feature most."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from corelens import HookedMLLM, TokenMap
from corelens.inputs.processor_probe import ProcessorProbe
from corelens.inputs.token_geometry import SEGMENTS, ProcessedImage, segments
from tests.helpers import processors, tiny
from tests.helpers.architectures import ARCHITECTURES
from tests.helpers.pictures import random_picture

pytestmark = pytest.mark.filterwarnings(
    # PaliGemma's processor turns tensors into arrays.
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)

QUESTION = "Which digit is red?"
SIZES = [(160, 96), (61, 250), (112, 112), (301, 67)]
PAIR = [(160, 96), (61, 250)]
FAMILIES = (
    "qwen3_vl", "qwen2_5_vl", "llava", "llava_pixtral", "vipllava", "fast_vlm", "llava_next", "llava_onevision",
    "internvl", "gemma3", "gemma3_pan_and_scan", "idefics3", "smolvlm", "mistral3", "mistral_large4", "lighton_ocr",
    "deepseek_vl", "janus", "paligemma", "aya_vision", "cohere2_vision", "llama4", "perception_lm", "gemma3n",
)  # fmt: skip
"""Families whose vision towers are called here; `test_token_geometry_decoder` checks the others by their decoders."""
VARIANTS = {"gemma3_pan_and_scan": "gemma3", "llava_pixtral": "llava"}
"""Variants of another family's processor, with the name of that family."""
CLIPPED = {"llava", "vipllava", "fast_vlm"}
"""Families whose processor crops the middle of a picture."""
NEWLINES = {"llava_next", "llava_onevision"}
"""Families some of whose image tokens stand for no pixels."""
PICTURE_NEEDED = {"paligemma", "llama4", "gemma3", "gemma3_pan_and_scan"}
"""Families whose processor takes no prompt without a picture."""
SAME_NUMBER_OF_TILES = {"perception_lm"}
"""Families whose processor stacks the tiles of all pictures in a prompt or a batch."""
PADDING_ATTENDED = {"mistral_large4"}
"""Families whose sparse attention selects padded keys, too, so that left padding changes the logits even of text."""

LARGE = {"vision_config": {"image_size": 112}}
LARGER = {"vision_config": {"image_size": 224}}
PIXTRAL = ARCHITECTURES["mistral3"].config["vision_config"] | {"image_size": 224}
TOWERS: dict[str, dict[str, Any]] = {
    "internvl": {"vision_config": {"image_size": [112, 112]}},
    "gemma3": LARGE | {"mm_tokens_per_image": 16},
    "gemma3_pan_and_scan": LARGE | {"mm_tokens_per_image": 16},
    **dict.fromkeys(["idefics3", "smolvlm", "aya_vision", "cohere2_vision", "llama4"], LARGE),
    **dict.fromkeys(["mistral3", "mistral_large4", "lighton_ocr"], LARGER),
    "llava_pixtral": {"vision_config": PIXTRAL, "vision_feature_layer": -1, "vision_feature_select_strategy": "full"},
    "perception_lm": {"projector_pooling_ratio": 2},
    **{
        name: {"vision_config": {"image_size": 56}, "image_grid_pinpoints": settings["image_grid_pinpoints"]}
        for name in NEWLINES
        if (settings := processors.FAMILIES[name].settings)
    },
}
"""Changes of the tiny configurations that fit their towers to the sizes of the pictures here."""


@dataclass
class HookedFamily:
    """A tiny model of a family whose tower fits the pictures here."""

    name: str
    model: HookedMLLM


@pytest.fixture(scope="module", params=processors.families(FAMILIES))
def family(request: pytest.FixtureRequest) -> HookedFamily:
    name = request.param
    architecture_name = VARIANTS.get(name, name)
    architecture = ARCHITECTURES[architecture_name]
    config = dict(architecture.config)
    for key, value in TOWERS.get(name, {}).items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    fitted = replace(architecture, config=config, model_type=architecture.model_type or architecture_name)
    with patch.dict(ARCHITECTURES, {name: fitted}):
        hf_model = tiny.build(name)
    with torch.no_grad():
        # A random tower that mixes tokens weakly, so that a feature tells which pixels it comes from.
        for part, parameter in hf_model.get_encoder("image").named_parameters():
            if any(output in part for output in ("out_proj", "o_proj", "attn.proj")):
                parameter.mul_(0.03)
    return HookedFamily(name, HookedMLLM(hf_model, processors.build(name)))


def test_every_family_with_rectangles_is_checked():
    """Here or in `test_token_geometry_decoder`, which takes all others of this table."""
    assert {VARIANTS.get(name, name) for name in processors.FAMILIES} == set(SEGMENTS)


def pictures(sizes: list[tuple[int, int]]) -> list[Image.Image]:
    return [random_picture(size, seed) for seed, size in enumerate(sizes)]


@torch.no_grad()
def features(model: HookedMLLM, images: list[Image.Image]) -> torch.Tensor:
    """Visual features of the pictures of one prompt, as the decoder gets them, also of placeholders without pixels."""
    inputs = model.processor(text=[model.processor.image_token * len(images)], images=[images], return_tensors="pt")
    pixels = {key: value for key, value in inputs.items() if key.startswith(("pixel", "image", "batch_num"))}
    pixels["pixel_values"] = pixels["pixel_values"].to(model.hf_model.dtype)
    owner = model.hf_model if hasattr(model.hf_model, "get_image_features") else model.hf_model.model
    output = owner.get_image_features(**pixels, return_dict=True)
    pictures = output.last_hidden_state if output.pooler_output is None else output.pooler_output
    pictures = [pictures] if isinstance(pictures, torch.Tensor) else pictures
    return torch.cat([picture.flatten(0, -2) for picture in pictures])


def token_hits(model: HookedMLLM, images: list[Image.Image], tokens: TokenMap, n: int = 10) -> list[bool]:
    """True for each of n sampled tokens t if t = argmax_u |f'_u - f_u| over the tokens u of its view.

    f are the features of the pictures, and f' those of pictures whose pixels inside the rectangle of t are inverted.
    """
    original_features = features(model, images)
    placeholders = (tokens.image | (tokens.structural & (tokens.view >= 0)))[0].nonzero().flatten()
    assert len(placeholders) == len(original_features)
    hits = []
    for token in np.random.default_rng(0).permutation(tokens.image[0].nonzero().flatten()).tolist():
        media = int(tokens.media[0, token])
        left, top, right, bottom = tokens.box[0, token].tolist()
        # The inner part: resizing mixes pixels across the edges of rectangles.
        x, y, extent = (right - left) / 4, (bottom - top) / 4, images[media].size
        columns = slice(max(int(left + x), 0), max(min(int(np.ceil(right - x)), extent[0]), 0))
        rows = slice(max(int(top + y), 0), max(min(int(np.ceil(bottom - y)), extent[1]), 0))
        changed = np.array(images[media])
        if not changed[rows, columns].size:
            continue  # padding
        changed[rows, columns] = 255 - changed[rows, columns]
        changed_images = [*images[:media], Image.fromarray(changed), *images[media + 1 :]]
        distance = (features(model, changed_images) - original_features).norm(dim=-1)
        in_view = (tokens.image & (tokens.media == media) & (tokens.view == tokens.view[0, token]))[0, placeholders]
        hits.append(int(placeholders[torch.where(in_view, distance, -1).argmax()]) == token)
        if len(hits) == n:
            break
    return hits


@pytest.mark.parametrize("sizes", [*([size] for size in SIZES), PAIR], ids=str)
def test_changing_pixels_of_a_token_changes_its_feature_most(family: HookedFamily, sizes: list[tuple[int, int]]):
    if family.name in SAME_NUMBER_OF_TILES:
        sizes = sizes[:1] * len(sizes)
    images = pictures(sizes)
    hits = token_hits(family.model, images, family.model.prepare(images, QUESTION).tokens)
    assert len(hits) >= 8
    assert np.mean(hits) >= 0.95


def transposed(tokens: TokenMap, view: torch.Tensor) -> torch.Tensor:
    """Order of a view's tokens column by column."""
    return torch.argsort(tokens.column[0, view] * 1000 + tokens.row[0, view])


WRONG: dict[str, Callable[[TokenMap, torch.Tensor], torch.Tensor]] = {
    "rows and columns swapped": transposed,
    "one cell late": lambda tokens, view: torch.arange(len(view)).roll(1),
    "upside down": lambda tokens, view: torch.argsort(-tokens.row[0, view], stable=True),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_rectangles_are_found_out(family: HookedFamily, wrong: str):
    """The test above can fail."""
    images = pictures(SIZES[:1])
    tokens = family.model.prepare(images, QUESTION).tokens
    box = tokens.box.clone()
    for number in range(int(tokens.view.max()) + 1):
        view = (tokens.image & (tokens.view == number))[0].nonzero().flatten()
        box[0, view] = box[0, view[WRONG[wrong](tokens, view)]]
    hits = token_hits(family.model, images, replace(tokens, box=box))
    assert len(hits) >= 8
    assert np.mean(hits) <= 0.5


def test_views_in_another_order_are_found_out(family: HookedFamily):
    images = pictures(SIZES[:1])
    tokens = family.model.prepare(images, QUESTION).tokens
    views = [
        (tokens.image & (tokens.view == view))[0].nonzero().flatten() for view in range(int(tokens.view.max()) + 1)
    ]
    if len(views) < 2 or len({len(view) for view in views}) > 1:
        pytest.skip("the views of a picture cannot be mistaken for each other")
    box = tokens.box.clone()
    box[0, torch.cat(views)] = box[0, torch.cat(views[1:] + views[:1])]
    assert np.mean(token_hits(family.model, images, replace(tokens, box=box))) <= 0.5


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_rectangles_tile_the_picture(family: HookedFamily, size: tuple[int, int]):
    """Every pixel of the picture lies in exactly one token of the tiles, and in exactly one of the overview."""
    tokens = family.model.prepare(random_picture(size), QUESTION).tokens
    width, height = size
    x, y = torch.arange(width) + 0.5, torch.arange(height)[:, None] + 0.5
    expected = torch.ones(height, width)
    if family.name in CLIPPED:
        # The tiny CLIP resizes the short side to its crop, so it sees the middle square.
        expected = ((x - width / 2).abs() < min(size) / 2) & ((y - height / 2).abs() < min(size) / 2)
    for mask in (tokens.image & ~tokens.overview, tokens.image & tokens.overview):
        if not mask.any():
            continue
        n = torch.zeros(height, width)
        for left, top, right, bottom in tokens.box[mask].tolist():
            n += (left <= x) & (x < right) & (top <= y) & (y < bottom)
        if family.name in NEWLINES and not tokens.overview[mask].any():
            # With the padding, less than one row or column of tokens is cut off the picture at either side.
            assert n.max() == 1
            rows, columns = tokens.grid_shape(view=1)
            shown_x, shown_y = (n.sum(0) > 0).float().mean(), (n.sum(1) > 0).float().mean()
            assert shown_x > columns / (columns + 2)
            assert shown_y > rows / (rows + 2)
        else:
            # The edges of a crop are measured.
            assert (n == expected).float().mean() > (0.97 if family.name in CLIPPED else 0.9999)


def test_roles_and_views(family: HookedFamily):
    inputs = family.model.prepare(pictures(PAIR if family.name not in SAME_NUMBER_OF_TILES else PAIR[:1] * 2), QUESTION)
    tokens, ids = inputs.tokens, inputs["input_ids"]
    image_id = family.model.hf_model.config.image_token_id
    assert (ids[tokens.image] == image_id).all()
    newlines = tokens.structural & (ids == image_id)
    assert newlines.any() == (family.name in NEWLINES)
    assert tokens.box[tokens.image].isfinite().all()
    assert tokens.box[~tokens.image].isnan().all()
    assert (tokens.row[~tokens.image] == -1).all()
    decode = family.model.processor.tokenizer.decode
    assert decode(ids[tokens.question]).strip() == QUESTION
    for media in range(2):
        (views,) = (tokens.media == media).nonzero(as_tuple=True)[1:]
        for view in range(int(tokens.view[0, views].max()) + 1):
            rows, columns = tokens.grid_shape(media, view)
            view_tokens = (tokens.image & (tokens.media == media) & (tokens.view == view))[0].nonzero().flatten()
            assert len(view_tokens) == rows * columns
            # Row by row.
            assert (tokens.row * columns + tokens.column)[0, view_tokens].tolist() == list(range(rows * columns))


def test_regions_of_a_picture_that_is_seen_more_than_once(family: HookedFamily):
    tokens = family.model.prepare(random_picture((160, 96)), QUESTION).tokens
    box = (60, 20, 90, 50)
    both, tiles, overview = (tokens.in_box(box, views=views) for views in ("all", "tiles", "overview"))
    if tokens.overview.any():
        assert torch.equal(both, tiles | overview)
        assert not (tiles & overview).any()
        assert tokens.overview[overview].all()
        assert len(set(tokens.view[tokens.overview].tolist())) == 1
    else:
        assert torch.equal(both, tiles)
        assert torch.equal(both, overview)


@torch.no_grad()
def test_a_batch_is_its_samples_left_padded(family: HookedFamily):
    """Different pictures, numbers of pictures and questions; one sample has none, where the processor allows it."""
    first, second = (PAIR[:1] * 3, PAIR[:1] * 2) if family.name in SAME_NUMBER_OF_TILES else (SIZES[1:2], PAIR)
    images: list[Any] = [None, pictures(first)[0], pictures(second)]
    questions = ["You?", QUESTION, "What colour is the 7?"]
    if family.name in PICTURE_NEEDED:
        images, questions = images[1:], questions[1:]
    together = family.model.prepare(images, questions)
    logits = family.model(together)
    for index in range(len(images)):
        alone = family.model.prepare([images[index]], [questions[index]])
        n = alone["input_ids"].shape[1]
        assert torch.equal(together["input_ids"][index, -n:], alone["input_ids"][0])
        assert together.tokens.padding[index, :-n].all()
        tokens = together.tokens[index]
        for name in ("role", "media", "view", "overview", "row", "column"):
            assert torch.equal(getattr(tokens, name)[:, -n:], getattr(alone.tokens, name))
        assert torch.equal(tokens.box[:, -n:].nan_to_num(-1), alone.tokens.box.nan_to_num(-1))
        assert tokens.sizes == alone.tokens.sizes
        if family.name in PADDING_ATTENDED:
            continue
        torch.testing.assert_close(logits[index, -1], family.model(alone)[0, -1], atol=2e-4, rtol=1e-3)


def test_a_picture_that_another_follows_is_not_tiled_by_llava_onevision():
    """It is padded to a square instead."""
    config = SimpleNamespace(model_type="llava_onevision", vision_config=SimpleNamespace(image_size=56, patch_size=14))
    probe = ProcessorProbe(processors.build("llava_onevision"), (160, 96), 2)
    (segment,) = segments(ProcessedImage(config, {}, 0, probe, 17))
    assert (segment.rows, segment.columns, segment.end, segment.overview) == (4, 4, 1, False)
    np.testing.assert_allclose(segment.region, (0, -32, 160, 128), atol=0.5)
