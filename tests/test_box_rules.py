"""Rules from boxes in pixels to tokens."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corelens import Box, HookedMLLM
from corelens.box_rules import published_tokens
from tests.helpers import processors, tiny
from tests.helpers.pictures import random_picture

sides = st.integers(1, 9)


def equation_5(box: tuple[int, ...], size: tuple[int, int], n_across: int, n_down: int, c: int) -> list[int]:
    """Equations 2 to 5, patch by patch, in exact fractions."""
    s_x, s_y = Fraction(n_across, size[0]), Fraction(n_down, size[1])
    x_min, y_min = max(0, box[0] * s_x // 1), max(0, box[1] * s_y // 1)
    x_max, y_max = min(n_across - 1, box[2] * s_x // 1), min(n_down - 1, box[3] * s_y // 1)
    tokens = set()
    for y in range(n_down):
        for x in range(n_across):
            if x_min <= x <= x_max and y_min <= y <= y_max:
                tokens.add((y * n_across + x) // c)
    return sorted(tokens)


@settings(deadline=None, max_examples=200)
@given(st.data(), sides, sides, st.sampled_from([1, 2, 3]), st.integers(2, 200), st.integers(2, 200))
def test_published_tokens_are_those_of_a_loop_over_patches(
    data: st.DataObject, rows: int, columns: int, merge: int, width: int, height: int
):
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    box = (left, top, data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height)))
    expected = equation_5(box, (width, height), columns * merge, rows * merge, merge**2)
    assert published_tokens(box, (width, height), rows, columns, merge).tolist() == expected
    assert set(expected) <= set(range(rows * columns))


def test_published_tokens_are_not_those_that_hold_the_patches():
    """A box over the upper left token of 2 x 2: its four patches are 0, 1, 4 and 5, and a quarter of these 0 and 1."""
    assert published_tokens((0, 0, 15, 15), (32, 32), 2, 2, 2).tolist() == [0, 1]
    assert published_tokens((0, 0, 15, 15), (32, 32), 2, 2, 1).tolist() == [0]


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
def test_a_map_knows_how_many_patches_a_model_merges(family: str):
    model = HookedMLLM(tiny.build(family), processors.build(family))
    pictures = [random_picture((112, 96)), random_picture((150, 100))]
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "a"}]}]
    tokens = model.prepare(pictures, chat).tokens
    assert tokens.merge == 2
    box, (width, height) = Box(20, 10, 75, 60), tokens.sizes[0][1]
    _, n_down, n_across = model.prepare(pictures[1], "a")["image_grid_thw"][0].tolist()
    selected = tokens.in_box(box, "as_published", media=1)
    offset = int((tokens.media[0] == 1).nonzero()[0])
    expected = equation_5(tuple(map(int, box)), (width, height), n_across, n_down, 4)
    assert (selected[0].nonzero().flatten() - offset).tolist() == expected
    assert not torch.equal(selected, tokens.in_box(box, media=1))


def test_the_published_map_of_a_model_that_merges_nothing_is_an_error():
    model = HookedMLLM(tiny.build("llava"), processors.build("llava"))
    tokens = model.prepare(random_picture((64, 64)), "a").tokens
    with pytest.raises(ValueError, match=r"as_published' is for models that merge .* Take rule='overlap'"):
        tokens.in_box((0, 0, 30, 30), "as_published")
