"""Rectangles of visual tokens by family, checked by the decoder: a token's own pixels change its embedding most.

For the families whose vision towers `test_token_geometry` does not call.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import processors, tiny_family
from tests.helpers.pictures import random_picture
from tests.helpers.tiny_family import TinyFamily, decoder_embeddings
from tests.inputs import test_token_geometry

# Processors of transformers 5.23 make arrays of tensors in a way that numpy deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

FAMILIES = [name for name in processors.FAMILIES if name not in test_token_geometry.FAMILIES]
SIZES = [(112, 96), (150, 100), (97, 180), (64, 64)]


@pytest.fixture(scope="module", params=processors.families(FAMILIES))
def family(request: pytest.FixtureRequest) -> TinyFamily:
    return tiny_family.build(request.param)


def token_hits(family: TinyFamily, images: list[Image.Image], boxes: torch.Tensor | None = None) -> list[bool]:
    """True for each sampled token t if t = argmax_u |e'_u - e_u|.

    e are the decoder's inputs, e' those of a picture whose pixels in the rectangle of t are changed, and u the tokens
    of the overview or of all tiles, whichever t belongs to.
    """
    tokens = family.prepare(images).tokens
    boxes = tokens.box[0] if boxes is None else boxes
    embeddings, hits = decoder_embeddings(family, images), []
    for media, image in enumerate(images):
        for overview in tokens.overview[tokens.media == media].unique():
            mask = tokens.image & (tokens.media == media) & (tokens.overview == overview)
            rivals = mask[0].nonzero().flatten()
            for token in np.random.default_rng(0).choice(rivals, min(8 // len(images), len(rivals)), replace=False):
                left, top, right, bottom = boxes[token].tolist()
                # The inner part: resizing mixes pixels across the edges of rectangles.
                x, y = (right - left) / 4, (bottom - top) / 4
                columns = slice(max(0, int(left + x)), max(0, int(np.ceil(right - x))))
                rows = slice(max(0, int(top + y)), max(0, int(np.ceil(bottom - y))))
                changed = np.array(image)
                if not changed[rows, columns].size:  # padding
                    continue
                changed[rows, columns] = 255 - changed[rows, columns] // 8
                changed_images = [*images[:media], Image.fromarray(changed), *images[media + 1 :]]
                distance = (decoder_embeddings(family, changed_images) - embeddings).norm(dim=-1)
                hits.append(bool(rivals[distance[rivals].argmax()] == token))
    return hits


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_changing_pixels_of_a_token_changes_its_embedding_most(family: TinyFamily, size: tuple[int, int]):
    hits = token_hits(family, [random_picture(size)])
    assert len(hits) >= 3
    assert np.mean(hits) >= 0.95, f"{sum(hits)} of {len(hits)}"


def test_two_pictures_in_a_prompt(family: TinyFamily):
    images = [random_picture((97, 180), 1), random_picture((150, 100), 2)]
    hits = token_hits(family, images)
    assert np.mean(hits) >= 0.95, f"{sum(hits)} of {len(hits)}"


@pytest.mark.parametrize("wrong", ["transposed", "shifted"])
def test_the_check_notices_wrong_rectangles(family: TinyFamily, wrong: str):
    """Rows and columns swapped, or every rectangle moved by one cell."""
    image = random_picture((150, 100))
    tokens = family.prepare([image]).tokens
    boxes = tokens.box[0].clone()
    for view in tokens.view[tokens.image].unique():
        view_tokens = (tokens.image & (tokens.view == view))[0].nonzero().flatten()
        order = torch.arange(len(view_tokens)).view(tokens.grid_shape(0, int(view)))
        wrong_order = order.T.flatten() if wrong == "transposed" else order.roll(1, 1).flatten()
        boxes[view_tokens] = boxes[view_tokens[wrong_order]]
    assert np.mean(token_hits(family, [image], boxes)) < 0.6


def test_pixels_reach_visual_tokens_and_no_others(family: TinyFamily):
    """Delimiters, row ends and separators are structural, whatever their id."""
    images, other_images = ([random_picture((97, 180), seed), random_picture((150, 100), seed + 1)] for seed in (1, 3))
    inputs = family.prepare(images)
    tokens = inputs.tokens
    changed = (decoder_embeddings(family, images) != decoder_embeddings(family, other_images)).any(-1)
    assert torch.equal(changed, tokens.image[0])
    assert not tokens.box[tokens.image].isnan().any()
    assert tokens.box[~tokens.image].isnan().all()
    assert family.processor.tokenizer.decode(inputs["input_ids"][tokens.question]) == "Which digit is red?"
    assert not tokens.context.any()


def test_rectangles_tile_the_picture(family: TinyFamily):
    for size in SIZES:
        tokens = family.prepare([random_picture(size)]).tokens
        for views in (tokens.overview, ~tokens.overview):
            boxes = tokens.box[tokens.image & views]
            if len(boxes):
                inner = boxes.clamp(min=0).minimum(torch.tensor([*size, *size]))
                areas = (inner[:, 2] - inner[:, 0]) * (inner[:, 3] - inner[:, 1])
                torch.testing.assert_close(areas.sum(), torch.tensor(float(size[0] * size[1])), rtol=0.02, atol=0)


def test_a_batch_is_its_samples_left_padded(family: TinyFamily):
    """Different pictures, numbers of pictures and questions; one sample has none."""
    images = [random_picture((64, 64)), [random_picture((97, 180), 1), random_picture((150, 100), 2)], None]
    questions = ["Which digit is red?", "What colour is the 7?", "You?"]
    together = family.prepare(images, questions)
    for index in range(3):
        alone = family.prepare([images[index]], [questions[index]])
        n = alone["input_ids"].shape[1]
        assert torch.equal(together["input_ids"][index, -n:], alone["input_ids"][0])
        assert together.tokens.padding[index, :-n].all()
        tokens = together.tokens[index]
        for name in ("role", "media", "view", "overview", "row", "column"):
            assert torch.equal(getattr(tokens, name)[:, -n:], getattr(alone.tokens, name)), name
        assert torch.equal(tokens.box[:, -n:].nan_to_num(-1), alone.tokens.box.nan_to_num(-1))
        assert tokens.sizes == alone.tokens.sizes
    assert together.tokens.media[1].max() == 1
