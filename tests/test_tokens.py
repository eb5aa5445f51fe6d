"""Roles and addresses of positions, with real processors."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from corelens import Box, HookedMLLM, Role, TokenMap
from corelens.tokens import BoxRule, grid_boxes
from tests.helpers import processors, tiny
from tests.helpers.pictures import random_picture

PREPARED = ("qwen3_vl", "qwen2_5_vl", "llava")
SIZES = [(112, 96), (150, 100), (97, 180), (64, 64)]


@pytest.fixture(scope="module", params=PREPARED)
def model(request: pytest.FixtureRequest) -> HookedMLLM:
    return HookedMLLM(tiny.build(request.param), processors.build(request.param))


def test_roles_spell_out_the_prompt(model: HookedMLLM):
    """The tokens of every role decode to the text that has this role."""
    chat = [
        {"role": "system", "content": [{"type": "text", "text": "You are a helpful assistant."}]},
        {"role": "user", "content": [{"type": "text", "text": "a a a"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "user"}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " a? "}]},
    ]
    inputs = model.prepare(random_picture((64, 64)), chat)
    decode = model.processor.tokenizer.decode
    ids, tokens = inputs["input_ids"], inputs.tokens
    assert decode(ids[tokens.system]) == "You are a helpful assistant."
    assert decode(ids[tokens.context]).replace(" ", "") == "aaauser"
    assert decode(ids[tokens.question]).strip() == "a?"
    assert set(ids[tokens.image].tolist()) == {tiny.IMAGE}
    assert int(tokens.last[0].nonzero()) == ids.shape[1] - 1
    by_role = sum((tokens.role == role).sum() for role in Role)
    assert by_role == tokens.role.numel()
    assert "image" in repr(tokens)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 90), st.integers(0, 70), st.integers(1, 112), st.integers(1, 96),
    st.sampled_from(["overlap", "centre", "cover", "fraction"]),
)  # fmt: skip
def test_rules_against_loops_over_pixels(left: int, top: int, width: int, height: int, rule: BoxRule):
    box, tokens = (left, top, min(left + width, 112), min(top + height, 96)), token_map()
    assume(box[2:] != (1, 1))  # which raises an error of its own
    covered = np.zeros((96, 112), bool)
    covered[box[1] : box[3], box[0] : box[2]] = True
    # Tokens of 16 x 16 pixels: seven columns, six rows.
    fraction = covered.reshape(6, 16, 7, 16).mean((1, 3)).flatten()
    centres = [(column * 16 + 8, row * 16 + 8) for row in range(6) for column in range(7)]
    expected = {
        "overlap": fraction > 0,
        "cover": fraction > 0.5,
        "fraction": fraction,
        "centre": [box[0] <= x < box[2] and box[1] <= y < box[3] for x, y in centres],
    }[rule]
    if not np.any(expected):
        with pytest.raises(ValueError, match="selects no token of picture 0"):
            tokens.in_box(box, rule)
    else:
        selected = tokens.in_box(box, rule)
        assert not selected[~tokens.image].any()
        np.testing.assert_allclose(tokens.grid(selected[0].float()).flatten(), np.asarray(expected, float), atol=1e-6)


def token_map() -> TokenMap:
    """One picture of 112 x 96 pixels in tokens of 16 x 16, between two structural tokens."""
    n = 42
    role = torch.tensor([[Role.STRUCTURAL, *[Role.IMAGE] * n, Role.STRUCTURAL]])
    media = torch.where(role == Role.IMAGE, 0, -1)
    view, row, column = media.clone(), torch.full_like(role, -1), torch.full_like(role, -1)
    row[0, 1:-1], column[0, 1:-1] = torch.arange(n) // 7, torch.arange(n) % 7
    box = torch.full((1, n + 2, 4), torch.nan)
    box[0, 1:-1] = grid_boxes(Box(0, 0, 112, 96), 6, 7)
    seconds = torch.full((1, n + 2, 2), torch.nan)
    return TokenMap(role, media, view, role < 0, row, column, box, seconds, (((112, 96),),))


@pytest.mark.parametrize(
    "box",
    [(-1, 0, 10, 10), (0, 0, 113, 10), (0, 90, 10, 97), (10, 0, 10, 10), (20, 0, 10, 10), (0, 0, float("nan"), 9)],
)
def test_boxes_outside_the_picture(box: tuple[float, ...]):
    with pytest.raises(ValueError, match=r"is not a region of picture 0 of sample 0, which is 112 x 96 pixels"):
        token_map().in_box(box)


@pytest.mark.parametrize("box", [(0, 0, 1, 1), (0.25, 0.1, 0.75, 1.0)])
def test_boxes_in_fractions_of_the_picture(box: tuple[float, ...]):
    with pytest.raises(ValueError, match=r"part of a single pixel of picture 0.*multiply left and right by 112, top"):
        token_map().in_box(box)


def test_unknown_rules_pictures_and_samples(monkeypatch: pytest.MonkeyPatch):
    tokens = token_map()
    with pytest.raises(IndexError, match="sample 0 has no picture 1: it has 1"):
        tokens.in_box((0, 0, 9, 9), media=1)
    with pytest.raises(IndexError, match="no sample 1: the batch has 1"):
        tokens[1]
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # as it is for users
    with pytest.raises(ValueError, match="rule='inside' is not known; it is one of overlap, centre, cover, fraction"):
        tokens.in_box((0, 0, 9, 9), rule="inside")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="views='both' is not known; it is one of all, tiles, overview"):
        tokens.media_tokens(views="both")  # pyright: ignore[reportArgumentType]


def test_a_box_that_the_model_does_not_see():
    model = HookedMLLM(tiny.build("llava"), processors.build("llava"))
    tokens = model.prepare(random_picture((300, 100)), "Which digit is red?").tokens
    with pytest.raises(ValueError, match="in a part of the picture that the model does not see"):
        tokens.in_box((0, 0, 50, 100))
    assert tokens.in_box((0, 0, 150, 100)).any()
