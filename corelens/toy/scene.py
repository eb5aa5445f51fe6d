"""What the toys' worlds have in common: things that are named by a key and have a value, at known places."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from corelens.errors import optional_import
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
"""Name and tint of every colour a thing can have."""

DIGITS = tuple(str(digit) for digit in range(10))

_PHOTOGRAPH_SPLIT = 420


@dataclass(frozen=True)
class Thing:
    """What a picture can be asked for: the value that a key has in it."""

    key: str
    value: str
    box: Box
    """Where it stands, in pixels of the picture."""


@dataclass(frozen=True)
class Mark:
    """A word or shape that a picture shows, for the vision tower to name."""

    name: str
    colour: str | None
    """None where colour means nothing, as in print."""
    box: Box
    partners: tuple[str, ...] = ()
    """What it belongs to in the picture: of a label its value, of a value its label, or its row and its column."""


@dataclass(frozen=True)
class Scene:
    """A picture and what is in it."""

    picture: UInt8[np.ndarray, "row column 3"]
    things: tuple[Thing, ...]
    marks: tuple[Mark, ...]

    def image(self) -> Image.Image:
        return Image.fromarray(self.picture)


@dataclass(frozen=True)
class World:
    """A kind of picture: what its keys and values are, how it is drawn, and how it is asked about.

    No key and no value stands twice in a picture, so that questions have one answer.
    """

    keys: tuple[str, ...]
    values: tuple[str, ...]
    choose: Callable[[np.random.Generator, tuple[str, ...], str | None], tuple[str, ...]]
    """Keys of one picture, from those given; among them the one that is named."""
    draw: Callable[[np.random.Generator, list[tuple[str, str]], Split], Scene]
    """The picture of some keys and their values."""
    of_value: str
    """Asks for the value of `{key}`."""
    of_key: str
    """Asks for the key of `{value}`."""

    def ask(self, rng: np.random.Generator, key: str, value: str) -> tuple[str, str]:
        """A question about a key and its value, and its answer. Keys of two words are not asked for."""
        if " " in key or rng.random() < 0.5:
            return self.of_value.format(key=key), value
        return self.of_key.format(value=value), key


def some(low: int, high: int) -> Callable[[np.random.Generator, tuple[str, ...], str | None], tuple[str, ...]]:
    """Chooses `low` to `high` keys at random."""

    def choose(rng: np.random.Generator, keys: tuple[str, ...], with_key: str | None) -> tuple[str, ...]:
        others = [str(key) for key in rng.permutation([key for key in keys if key != with_key])]
        named = [] if with_key is None else [with_key]
        return tuple([*named, *others][: int(rng.integers(low, high + 1))])

    return choose


def clipped(box: Box) -> Box:
    """The part of a box that is in the picture: outlines and letters may pass its edge by a pixel or two."""
    return Box(max(box.left, 0), max(box.top, 0), min(box.right, SIDE), min(box.bottom, SIDE))


@cache
def photographs(split: Split) -> list[UInt8[np.ndarray, "row column 3"]]:
    """The part of scikit-learn's two photographs that belongs to one split: left of a column, or right of it."""
    with optional_import("app"):
        from sklearn.datasets import load_sample_images

    columns = slice(None, _PHOTOGRAPH_SPLIT) if split == "train" else slice(_PHOTOGRAPH_SPLIT, None)
    return [photograph[:, columns] for photograph in load_sample_images().images]


def crop(rng: np.random.Generator, split: Split) -> Float[np.ndarray, "row column 3"]:
    """A random part of a random photograph."""
    found = photographs(split)
    photograph = found[rng.integers(len(found))]
    top, left = (int(rng.integers(extent - SIDE)) for extent in photograph.shape[:2])
    return photograph[top : top + SIDE, left : left + SIDE].astype(np.float32)


def free_boxes(rng: np.random.Generator, n: int) -> list[Box]:
    """Up to `n` squares of 16 to 24 pixels at free positions that do not overlap; crowded scenes may hold fewer."""
    boxes: list[Box] = []
    for _ in range(200 * n):
        if len(boxes) == n:
            break
        size = int(rng.integers(16, 25))
        left, top = (int(value) for value in rng.integers(0, SIDE - size + 1, 2))
        new = Box(left, top, left + size, top + size)
        if not any(
            new.left < old.right and old.left < new.right and new.top < old.bottom and old.top < new.bottom
            for old in boxes
        ):
            boxes.append(new)
    return boxes
