"""Emoji scenes: what they show is what is asked, and the splits share nothing."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corelens.smol import emoji
from corelens.smol.emoji import EMOJI, FRAMES, N_THINGS, VENDORS, draw, drawings
from corelens.toy.scene import SIDE, Split

SPLITS: tuple[Split, ...] = ("train", "test")


def pairs_of(split: Split, seed: int) -> set[tuple[str, str]]:
    """Things and their numbers, from the questions about a scene."""
    asked = draw(np.random.default_rng(seed), split).questions
    return {
        (question.text.removeprefix("Which number is next to the ").removesuffix("?"), question.answer)
        for question in asked
        if question.task == "number"
    }


@given(seed=st.integers(0, 10_000), split=st.sampled_from(SPLITS))
def test_every_question_has_one_answer_and_its_place(seed: int, split: Split):
    scene = draw(np.random.default_rng(seed), split)
    assert scene.picture.size == (SIDE, SIDE)
    assert max(Counter(question.text for question in scene.questions).values()) == 1
    tasks = Counter(question.task for question in scene.questions)
    assert {tasks[task] for task in ("number", "thing by number", "colour", "thing by colour")} == {N_THINGS}
    # Three columns have two pairs of neighbours a row, two columns have one; each is asked from both sides.
    assert tasks["neighbour"] in (2 * 2 * 2, 3 * 1 * 2)
    for question in scene.questions:
        box = question.box
        assert 0 <= box.left < box.right <= SIDE
        assert 0 <= box.top < box.bottom <= SIDE
    frames = {question.answer: question.box for question in scene.questions if question.task == "thing by number"}
    assert len({(box.left, box.top) for box in frames.values()}) == N_THINGS


@given(seed=st.integers(0, 10_000))
def test_neighbours_are_in_the_row_and_on_the_side(seed: int):
    scene = draw(np.random.default_rng(seed), "test")
    frame = {question.answer: question.box for question in scene.questions if question.task == "thing by number"}
    for question in scene.questions:
        if question.task == "neighbour":
            side, thing = question.text.removeprefix("What is ").removesuffix("?").split(" of the ")
            there, here = frame[question.answer], frame[thing]
            assert abs(there.top - here.top) <= 2
            assert (there.left < here.left) == (side == "left")
            assert abs(there.left - here.left) < SIDE / 2 + 10


def test_the_colour_of_a_frame_is_painted():
    for seed in range(20):
        scene = draw(np.random.default_rng(seed), "test")
        for question in scene.questions:
            if question.task == "colour":
                corner = scene.picture.getpixel((int(question.box.left), int(question.box.top)))
                distance = {name: np.abs(np.subtract(corner, tint)).sum() for name, tint in FRAMES.items()}
                assert min(distance, key=distance.__getitem__) == question.answer


def test_splits_share_no_vendor_and_no_pair():
    assert not {*VENDORS["train"]} & {*VENDORS["test"]}
    seen = {split: set().union(*(pairs_of(split, seed) for seed in range(60))) for split in SPLITS}
    assert not seen["train"] & seen["test"]
    assert {name for name, _ in seen["train"]} == {*EMOJI}


@pytest.mark.parametrize("vendor", [name for names in VENDORS.values() for name in names])
def test_every_emoji_is_drawn_and_no_two_alike(vendor: str):
    found = drawings(vendor)
    missing = {"fxemoji": 8, "streamline": 14}.get(vendor, 0)
    assert [*found] == [name for name in EMOJI if name in found]
    assert len(found) == len(EMOJI) - missing
    for name, picture in found.items():
        assert picture.shape == (40, 40, 4)
        assert (picture[..., 3] > 128).mean() > 0.1, name
    assert len({picture.tobytes() for picture in found.values()}) == len(found)


def test_the_licences_name_every_vendor():
    from pathlib import Path

    text = (Path(emoji.__file__).parent / "emoji" / "LICENSES.md").read_text()
    for names in VENDORS.values():
        for name in names:
            assert f"`{name}.webp`" in text
