"""Common parts of the toy worlds: scenes of things with a key, a value and a known place."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from corelens.data.synthetic.drawing import sample_photographs
from corelens.tokens import Box

Split = Literal["train", "test"]

SIDE = 128
"""Width and height of every picture, in pixels."""

COLOURS = {
    "red": (235, 40, 40),
    "orange": (255, 150, 20),
    "yellow": (250, 240, 60),
    "green": (50, 200, 50),
    "cyan": (60, 230, 235),
    "blue": (60, 90, 255),
    "purple": (190, 60, 230),
    "white": (250, 250, 250),
}
"""Names and tints of the colours of things."""

DIGITS = tuple(str(digit) for digit in range(10))

_PHOTOGRAPH_SPLIT = 420


@dataclass(frozen=True)
class Thing:
    """A key with its value in a picture: the subject of a question."""

    key: str
    value: str
    box: Box
    """Its place, in pixels of the picture."""


@dataclass(frozen=True)
class Mark:
    """A word or shape in a picture, as a label for training the vision tower."""

    name: str
    colour: str | None
    """None where colour has no meaning, as in print."""
    box: Box
    partners: tuple[str, ...] = ()
    """Related marks in the picture: a label's value, a value's label, or its row and its column."""


@dataclass(frozen=True)
class Scene:
    """A picture and its contents."""

    picture: UInt8[np.ndarray, "row column 3"]
    things: tuple[Thing, ...]
    marks: tuple[Mark, ...]

    def image(self) -> Image.Image:
        """The picture for Pillow."""
        return Image.fromarray(self.picture)


@dataclass(frozen=True)
class World:
    """A kind of picture: its keys and values, the function that draws it, and its questions.

    No key and no value occurs twice in a picture, so that questions have one answer.
    """

    keys: tuple[str, ...]
    values: tuple[str, ...]
    choose: Callable[[np.random.Generator, tuple[str, ...], str | None], tuple[str, ...]]
    """Function that chooses the keys of one picture from the given ones, always with the named one."""
    draw: Callable[[np.random.Generator, list[tuple[str, str]], Split], Scene]
    """Function that draws the picture of pairs of keys and values."""
    value_question: str
    """Question for the value of `{key}`."""
    key_question: str
    """Question for the key of `{value}`."""
    value_name: str
    """Noun for a value, which names the task of finding one."""
    key_name: str

    def ask(self, rng: np.random.Generator, key: str, value: str) -> tuple[str, str]:
        """Return a question about a key or its value, and its answer. Keys of two words are never the answer."""
        return self.question(" " in key or rng.random() < 0.5, key, value)

    def question(self, asks_value: bool, key: str, value: str) -> tuple[str, str]:
        """Return the question about a key's value, or about a value's key, and its answer."""
        if asks_value:
            return self.value_question.format(key=key), value
        return self.key_question.format(value=value), key

    def task(self, answer: str) -> str:
        """Name of what a question asks for, by its answer: a key or a value."""
        return self.value_name if answer in self.values else self.key_name


def random_keys(low: int, high: int) -> Callable[[np.random.Generator, tuple[str, ...], str | None], tuple[str, ...]]:
    """Return a function that chooses `low` to `high` keys at random."""

    def choose(rng: np.random.Generator, keys: tuple[str, ...], with_key: str | None) -> tuple[str, ...]:
        others = [str(key) for key in rng.permutation([key for key in keys if key != with_key])]
        named = [] if with_key is None else [with_key]
        return tuple([*named, *others][: int(rng.integers(low, high + 1))])

    return choose


def clip(box: Box) -> Box:
    """Clip a box to the picture: outlines and letters may extend beyond its edge by a pixel or two."""
    return Box(max(box.left, 0), max(box.top, 0), min(box.right, SIDE), min(box.bottom, SIDE))


@cache
def photograph_regions(split: Split) -> list[UInt8[np.ndarray, "row column 3"]]:
    """The regions of the two photographs that belong to a split: left or right of a column."""
    columns = slice(None, _PHOTOGRAPH_SPLIT) if split == "train" else slice(_PHOTOGRAPH_SPLIT, None)
    return [photograph[:, columns] for photograph in sample_photographs()]


def random_crop(rng: np.random.Generator, split: Split) -> Float[np.ndarray, "row column 3"]:
    """A random part of a random photograph."""
    regions = photograph_regions(split)
    region = regions[rng.integers(len(regions))]
    top, left = (int(rng.integers(extent - SIDE)) for extent in region.shape[:2])
    return region[top : top + SIDE, left : left + SIDE].astype(np.float32)


def free_boxes(rng: np.random.Generator, n: int) -> list[Box]:
    """Up to `n` squares of 16 to 24 pixels at random that do not overlap; fewer if the scene is full."""
    boxes: list[Box] = []
    for _ in range(200 * n):
        if len(boxes) == n:
            break
        size = int(rng.integers(16, 25))
        left, top = (int(value) for value in rng.integers(0, SIDE - size + 1, 2))
        box = Box(left, top, left + size, top + size)
        if not any(
            box.left < other.right and other.left < box.right and box.top < other.bottom and other.top < box.bottom
            for other in boxes
        ):
            boxes.append(box)
    return boxes
