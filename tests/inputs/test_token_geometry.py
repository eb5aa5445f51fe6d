"""Rectangles of visual tokens, family by family, checked against what the vision tower sees."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from corelens import HookedMLLM
from corelens.inputs.processor_probe import ProcessorProbe
from corelens.inputs.token_geometry import SEGMENTS, ProcessedImage, segments
from tests.helpers import processors, tiny
from tests.helpers.architectures import ARCHITECTURES

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
    "deepseek_vl", "janus", "paligemma", "aya_vision", "cohere2_vision", "llama4", "perception_lm",
)  # fmt: skip
"""Those whose vision towers are asked here; `test_processor_probe` sees what the decoders of the others get."""
VARIANTS = {"gemma3_pan_and_scan": "gemma3", "llava_pixtral": "llava"}
"""Of what they are variants."""
CLIPPED = {"llava", "vipllava", "fast_vlm"}
"""Their processor cuts out the middle."""
NEWLINES = {"llava_next", "llava_onevision"}
"""Some of their image tokens stand for no pixels."""
PICTURE_NEEDED = {"paligemma", "llama4", "gemma3", "gemma3_pan_and_scan"}
SAME_NUMBER_OF_TILES = {"perception_lm"}
"""Their processor stacks the tiles of all pictures in a prompt or a batch."""
PADDING_SEEN = {"mistral_large4"}
"""Their sparse attention picks keys from padding, too, so left padding changes the logits even of plain text."""

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
"""What fits the towers of the tiny models to the sizes of the pictures here."""


@pytest.fixture(scope="module", params=processors.families(FAMILIES))
def seeing(request: pytest.FixtureRequest) -> Iterator[Any]:
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
    return SimpleNamespace(name=name, model=HookedMLLM(hf_model, processors.build(name)))


def test_every_family_with_rectangles_is_checked():
    """Here or in `test_processor_probe`, which takes all others of this table."""
    assert {VARIANTS.get(name, name) for name in processors.FAMILIES} == set(SEGMENTS)


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    width, height = size
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def pictures(sizes: list[tuple[int, int]]) -> list[Image.Image]:
    return [picture(size, seed) for seed, size in enumerate(sizes)]


@torch.no_grad()
def features(model: Any, images: list[Image.Image]) -> torch.Tensor:
    """Visual features of the pictures of one prompt, as the decoder gets them, with those that stand for no pixels."""
    inputs = model.processor(text=[model.processor.image_token * len(images)], images=[images], return_tensors="pt")
    pixels = {key: value for key, value in inputs.items() if key.startswith(("pixel", "image", "batch_num"))}
    pixels["pixel_values"] = pixels["pixel_values"].to(model.hf_model.dtype)
    owner = model.hf_model if hasattr(model.hf_model, "get_image_features") else model.hf_model.model
    output = owner.get_image_features(**pixels, return_dict=True)
    found = output.last_hidden_state if output.pooler_output is None else output.pooler_output
    return torch.cat([part.flatten(0, -2) for part in ([found] if isinstance(found, torch.Tensor) else found)])


def hits(model: Any, images: list[Image.Image], tokens: Any, n: int = 10) -> list[bool]:
    """Whether changing the inside of a token's rectangle changes its feature most within its view, for some tokens."""
    before = features(model, images)
    placeholders = (tokens.image | (tokens.structural & (tokens.view >= 0)))[0].nonzero().flatten()
    assert len(placeholders) == len(before)
    found = []
    for token in np.random.default_rng(0).permutation(tokens.image[0].nonzero().flatten()).tolist():
        media = int(tokens.media[0, token])
        left, top, right, bottom = tokens.box[0, token].tolist()
        # The inner part: resizing mixes pixels across the edges of rectangles.
        x, y, extent = (right - left) / 4, (bottom - top) / 4, images[media].size
        columns = slice(max(int(left + x), 0), max(min(int(np.ceil(right - x)), extent[0]), 0))
        rows = slice(max(int(top + y), 0), max(min(int(np.ceil(bottom - y)), extent[1]), 0))
        changed = np.array(images[media])
        if not changed[rows, columns].size:
            continue  # sees padding
        changed[rows, columns] = 255 - changed[rows, columns]
        moved = (features(model, [*images[:media], Image.fromarray(changed), *images[media + 1 :]]) - before).norm(
            dim=-1
        )
        mine = (tokens.image & (tokens.media == media) & (tokens.view == tokens.view[0, token]))[0, placeholders]
        found.append(int(placeholders[torch.where(mine, moved, -1).argmax()]) == token)
        if len(found) == n:
            break
    return found


@pytest.mark.parametrize("sizes", [*([size] for size in SIZES), PAIR], ids=str)
def test_changing_pixels_of_a_token_changes_its_feature_most(seeing: Any, sizes: list[tuple[int, int]]):
    if seeing.name in SAME_NUMBER_OF_TILES:
        sizes = sizes[:1] * len(sizes)
    images = pictures(sizes)
    found = hits(seeing.model, images, seeing.model.prepare(images, QUESTION).tokens)
    assert len(found) >= 8
    assert np.mean(found) >= 0.95


def transposed(tokens: Any, view: torch.Tensor) -> torch.Tensor:
    """The order of a view's tokens column by column."""
    return torch.argsort(tokens.column[0, view] * 1000 + tokens.row[0, view])


WRONG: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "rows and columns swapped": transposed,
    "one cell late": lambda tokens, view: torch.arange(len(view)).roll(1),
    "upside down": lambda tokens, view: torch.argsort(-tokens.row[0, view], stable=True),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_rectangles_are_found_out(seeing: Any, wrong: str):
    """The test above can fail."""
    images = pictures(SIZES[:1])
    tokens = seeing.model.prepare(images, QUESTION).tokens
    box = tokens.box.clone()
    for number in range(int(tokens.view.max()) + 1):
        view = (tokens.image & (tokens.view == number))[0].nonzero().flatten()
        box[0, view] = box[0, view[WRONG[wrong](tokens, view)]]
    found = hits(seeing.model, images, replace(tokens, box=box))
    assert len(found) >= 8
    assert np.mean(found) <= 0.5


def test_views_in_another_order_are_found_out(seeing: Any):
    images = pictures(SIZES[:1])
    tokens = seeing.model.prepare(images, QUESTION).tokens
    views = [
        (tokens.image & (tokens.view == view))[0].nonzero().flatten() for view in range(int(tokens.view.max()) + 1)
    ]
    if len(views) < 2 or len({len(view) for view in views}) > 1:
        pytest.skip("the views of a picture cannot be mistaken for each other")
    box = tokens.box.clone()
    box[0, torch.cat(views)] = box[0, torch.cat(views[1:] + views[:1])]
    assert np.mean(hits(seeing.model, images, replace(tokens, box=box))) <= 0.5


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_rectangles_tile_the_picture(seeing: Any, size: tuple[int, int]):
    """Every pixel of the picture lies in exactly one token of the tiles, and in exactly one of the overview."""
    tokens = seeing.model.prepare(picture(size), QUESTION).tokens
    width, height = size
    x, y = torch.arange(width) + 0.5, torch.arange(height)[:, None] + 0.5
    expected = torch.ones(height, width)
    if seeing.name in CLIPPED:
        # The tiny CLIP resizes the short side to its crop, so it sees the middle square.
        expected = ((x - width / 2).abs() < min(size) / 2) & ((y - height / 2).abs() < min(size) / 2)
    for chosen in (tokens.image & ~tokens.overview, tokens.image & tokens.overview):
        if not chosen.any():
            continue
        n = torch.zeros(height, width)
        for left, top, right, bottom in tokens.box[chosen].tolist():
            n += (left <= x) & (x < right) & (top <= y) & (y < bottom)
        if seeing.name in NEWLINES and not tokens.overview[chosen].any():
            # With the padding, less than one row or column of tokens is cut off the picture at either side.
            assert n.max() == 1
            rows, columns = tokens.grid_shape(view=1)
            shown_x, shown_y = (n.sum(0) > 0).float().mean(), (n.sum(1) > 0).float().mean()
            assert shown_x > columns / (columns + 2)
            assert shown_y > rows / (rows + 2)
        else:
            # The edges of a crop are measured.
            assert (n == expected).float().mean() > (0.97 if seeing.name in CLIPPED else 0.9999)


def test_roles_and_views(seeing: Any):
    inputs = seeing.model.prepare(pictures(PAIR if seeing.name not in SAME_NUMBER_OF_TILES else PAIR[:1] * 2), QUESTION)
    tokens, ids = inputs.tokens, inputs["input_ids"]
    image_id = seeing.model.hf_model.config.image_token_id
    assert (ids[tokens.image] == image_id).all()
    newlines = tokens.structural & (ids == image_id)
    assert newlines.any() == (seeing.name in NEWLINES)
    assert tokens.box[tokens.image].isfinite().all()
    assert tokens.box[~tokens.image].isnan().all()
    assert (tokens.row[~tokens.image] == -1).all()
    decode = seeing.model.processor.tokenizer.decode
    assert decode(ids[tokens.question]).strip() == QUESTION
    for media in range(2):
        (views,) = (tokens.media == media).nonzero(as_tuple=True)[1:]
        for view in range(int(tokens.view[0, views].max()) + 1):
            rows, columns = tokens.grid_shape(media, view)
            mine = (tokens.image & (tokens.media == media) & (tokens.view == view))[0].nonzero().flatten()
            assert len(mine) == rows * columns
            # Row by row.
            assert (tokens.row * columns + tokens.column)[0, mine].tolist() == list(range(rows * columns))


def test_regions_of_a_picture_that_is_seen_more_than_once(seeing: Any):
    tokens = seeing.model.prepare(picture((160, 96)), QUESTION).tokens
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
def test_a_batch_is_its_samples_left_padded(seeing: Any):
    """Different pictures, numbers of pictures and questions; one sample has none, where the processor lets it."""
    one, two = (PAIR[:1] * 3, PAIR[:1] * 2) if seeing.name in SAME_NUMBER_OF_TILES else (SIZES[1:2], PAIR)
    images: list[Any] = [None, pictures(one)[0], pictures(two)]
    questions = ["You?", QUESTION, "What colour is the 7?"]
    if seeing.name in PICTURE_NEEDED:
        images, questions = images[1:], questions[1:]
    together = seeing.model.prepare(images, questions)
    logits = seeing.model(together)
    for index in range(len(images)):
        alone = seeing.model.prepare([images[index]], [questions[index]])
        n = alone["input_ids"].shape[1]
        assert torch.equal(together["input_ids"][index, -n:], alone["input_ids"][0])
        assert together.tokens.padding[index, :-n].all()
        mine = together.tokens[index]
        for name in ("role", "media", "view", "overview", "row", "column"):
            assert torch.equal(getattr(mine, name)[:, -n:], getattr(alone.tokens, name))
        assert torch.equal(mine.box[:, -n:].nan_to_num(-1), alone.tokens.box.nan_to_num(-1))
        assert mine.sizes == alone.tokens.sizes
        if seeing.name in PADDING_SEEN:
            continue
        torch.testing.assert_close(logits[index, -1], seeing.model(alone)[0, -1], atol=2e-4, rtol=1e-3)


def test_a_picture_that_another_follows_is_not_tiled_by_llava_onevision():
    """It is padded to a square instead."""
    config = SimpleNamespace(model_type="llava_onevision", vision_config=SimpleNamespace(image_size=56, patch_size=14))
    measured = ProcessorProbe(processors.build("llava_onevision"), (160, 96), 2)
    (segment,) = segments(ProcessedImage(config, {}, 0, measured, 17))
    assert (segment.rows, segment.columns, segment.end, segment.overview) == (4, 4, 1, False)
    np.testing.assert_allclose(segment.region, (0, -32, 160, 128), atol=0.5)
