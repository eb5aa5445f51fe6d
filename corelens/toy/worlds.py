"""Scenes of handwritten digits, and the questions that the shipped models answer.

Every picture is made from real data that scikit-learn ships: its 8 x 8 handwritten digits, tinted, enlarged and placed
freely on noise or on a crop of its two photographs. `split="train"` and `split="test"` never share a digit image or a
photograph region.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from corelens.data import Evidence, Sample
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
"""Name and tint of every colour a digit can have."""

DIGITS = tuple(str(digit) for digit in range(10))
TEXT_TASKS = ("copy", "recall", "sum")
"""Tasks without a picture: the control that tells "cannot see" from "cannot answer"."""

_TRAIN_DIGITS = 1_400
_PHOTOGRAPH_SPLIT = 420


@dataclass(frozen=True)
class Thing:
    """One digit in a scene."""

    digit: str
    colour: str
    box: Box
    """Where it stands, in pixels of the picture."""


@dataclass(frozen=True)
class Scene:
    """A picture and what is in it."""

    picture: UInt8[np.ndarray, "row column 3"]
    things: tuple[Thing, ...]

    def image(self) -> Image.Image:
        return Image.fromarray(self.picture)


@cache
def _glyphs(split: Split) -> dict[str, Float[np.ndarray, "glyph 8 8"]]:
    """The handwritten digits of one split, ink from 0 to 1, by the digit they show."""
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    chosen = order[:_TRAIN_DIGITS] if split == "train" else order[_TRAIN_DIGITS:]
    ink = (data.images[chosen] / 16).astype(np.float32)
    return {digit: ink[data.target[chosen] == int(digit)] for digit in DIGITS}


@cache
def _photographs(split: Split) -> list[UInt8[np.ndarray, "row column 3"]]:
    """The part of scikit-learn's two photographs that belongs to one split: left of a column, or right of it."""
    from sklearn.datasets import load_sample_images

    columns = slice(None, _PHOTOGRAPH_SPLIT) if split == "train" else slice(_PHOTOGRAPH_SPLIT, None)
    return [photograph[:, columns] for photograph in load_sample_images().images]


def _background(rng: np.random.Generator, split: Split) -> Float[np.ndarray, "row column 3"]:
    """Half the time coloured noise, half the time a darkened photograph crop, so that every tint stays visible."""
    if rng.random() < 0.5:
        base = rng.uniform(0, 110, 3)
        return np.clip(base + rng.normal(0, rng.uniform(5, 35), (SIDE, SIDE, 3)), 0, 255).astype(np.float32)
    photographs = _photographs(split)
    photograph = photographs[rng.integers(len(photographs))]
    top, left = (int(rng.integers(extent - SIDE)) for extent in photograph.shape[:2])
    return photograph[top : top + SIDE, left : left + SIDE].astype(np.float32) * rng.uniform(0.3, 0.6)


def _free_boxes(rng: np.random.Generator, n: int) -> list[Box]:
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


def draw_scene(rng: np.random.Generator, n_things: int, split: Split, distinct: bool = True) -> Scene:
    """A cluttered scene.

    Args:
        rng: Decides everything about the scene.
        n_things: How many digits; with `distinct`, at most 8, since colours must differ.
        split: Which handwritten digits and photograph regions may appear.
        distinct: Whether no digit and no colour appears twice, so that questions have one answer.
    """
    if distinct and not 1 <= n_things <= len(COLOURS):
        raise ValueError(f"n_things={n_things} is outside 1..{len(COLOURS)}: every digit needs a colour of its own.")
    canvas = _background(rng, split)
    boxes = _free_boxes(rng, n_things)
    digits = rng.choice(DIGITS, len(boxes), replace=not distinct)
    colours = rng.choice(tuple(COLOURS), len(boxes), replace=not distinct)
    return _paint(rng, canvas, boxes, [(str(c), str(d)) for c, d in zip(colours, digits, strict=True)], split)


def _paint(
    rng: np.random.Generator,
    canvas: Float[np.ndarray, "row column 3"],
    boxes: list[Box],
    pairs: list[tuple[str, str]],
    split: Split,
) -> Scene:
    """The scene in which every box holds its colour and digit; a pair without a box is left out."""
    things = []
    for box, (colour, digit) in zip(boxes, pairs, strict=False):
        glyphs = _glyphs(split)[digit]
        size = int(box.right - box.left)
        ink = Image.fromarray(glyphs[rng.integers(len(glyphs))]).resize((size, size), Image.Resampling.BILINEAR)
        tint = np.clip(np.array(COLOURS[colour]) + rng.normal(0, 8, 3), 0, 255)
        region = (slice(int(box.top), int(box.bottom)), slice(int(box.left), int(box.right)))
        opacity = np.asarray(ink)[..., None]
        canvas[region] = canvas[region] * (1 - opacity) + tint * opacity
        things.append(Thing(digit, colour, box))
    return Scene(np.clip(canvas, 0, 255).astype(np.uint8), tuple(things))


@dataclass(frozen=True)
class Haystack:
    """Many pictures, and the few things in them whose colour and digit appear nowhere else."""

    scenes: tuple[Scene, ...]
    needles: tuple[tuple[int, Thing], ...]
    """Number of the picture, and the thing."""


def draw_haystack(rng: np.random.Generator, n_pictures: int, n_things: int, n_needles: int, split: Split) -> Haystack:
    """Pictures of a few digits each, among them the needles; all other digits share what is left of the colours.

    Args:
        rng: Decides everything about the pictures.
        n_pictures: How many, at least 1.
        n_things: Most digits of a picture, 1 to 6; the fewest are two less.
        n_needles: How many things can be asked for, 1 to 4.
        split: Which handwritten digits and photograph regions may appear.
    """
    digits, colours = ([str(word) for word in rng.permutation(words)] for words in (DIGITS, tuple(COLOURS)))
    needles = list(zip(colours[:n_needles], digits[:n_needles], strict=True))
    picture_of = rng.integers(n_pictures, size=n_needles)
    scenes, found = [], []
    for picture in range(n_pictures):
        own = [needle for needle, where in zip(needles, picture_of, strict=True) if where == picture]
        common = zip(rng.permutation(colours[n_needles:]), rng.permutation(digits[n_needles:]), strict=False)
        n = max(len(own), int(rng.integers(max(1, n_things - 2), n_things + 1)))
        pairs = [*own, *((str(colour), str(digit)) for colour, digit in common)][:n]
        canvas, boxes = _background(rng, split), _free_boxes(rng, len(pairs))
        # Needles come first, so that in a crowded picture they have a place; boxes are in no order anyway.
        scene = _paint(rng, canvas, boxes, pairs, split)
        scenes.append(scene)
        found += [(picture, thing) for thing in scene.things[: len(own)]]
    return Haystack(tuple(scenes), tuple(found))


def ask(rng: np.random.Generator, scene: Scene) -> tuple[str, str, Thing]:
    """A question about one thing in the scene, its answer, and the thing that is the evidence."""
    thing = scene.things[rng.integers(len(scene.things))]
    question, answer = ask_pairs(rng, [(thing.colour, thing.digit)])
    return question, answer, thing


def ask_text(rng: np.random.Generator, task: str) -> tuple[str, str]:
    """A question that needs no picture, and its answer, in the same vocabulary as the visual ones."""
    if task == "sum":
        total = int(rng.integers(10))
        first = int(rng.integers(total + 1))
        return f"what is {first} plus {total - first} ?", str(total)
    pairs = draw_pairs(rng)
    if task == "copy":
        words = " ".join(say_pairs(pairs).split()[: int(rng.integers(2, 7))])
        return f"copy {words}", words
    if task == "recall":
        question, answer = ask_pairs(rng, pairs)
        return f"{say_pairs(pairs)} . {question}", answer
    raise ValueError(f"{task!r} is not a text task; the text tasks are {', '.join(TEXT_TASKS)}.")


def draw_pairs(rng: np.random.Generator) -> list[tuple[str, str]]:
    """Two to four colours, each with a digit: a scene in words."""
    n = int(rng.integers(2, 5))
    digits = rng.choice(DIGITS, n, replace=False)
    colours = rng.choice(tuple(COLOURS), n, replace=False)
    return [(str(colour), str(digit)) for colour, digit in zip(colours, digits, strict=True)]


def say_pairs(pairs: list[tuple[str, str]]) -> str:
    return " ".join(f"{colour} {digit}" for colour, digit in pairs)


def ask_pairs(rng: np.random.Generator, pairs: list[tuple[str, str]]) -> tuple[str, str]:
    """A question about one pair, in the words of the questions about scenes, and its answer."""
    colour, digit = pairs[rng.integers(len(pairs))]
    if rng.random() < 0.5:
        return f"which digit is {colour} ?", digit
    return f"what colour is the {digit} ?", colour


def scenes(n: int, seed: int, n_things: int = 6, split: Split = "test") -> Iterator[Sample]:
    """`n` scenes with one question each; the box of the asked digit is the evidence.

    Sample i depends on `seed` and i alone, so a longer run begins with the shorter one.
    """
    for index in range(n):
        rng = np.random.default_rng([seed, index])
        scene = draw_scene(rng, n_things, split)
        question, answer, thing = ask(rng, scene)
        evidence = (Evidence(thing.box),)
        yield Sample(f"scene-{split}-{seed}-{index}", question, answer, (scene.image(),), evidence)


def haystacks(n: int, seed: int, n_pictures: int = 32, n_things: int = 3, split: Split = "test") -> Iterator[Sample]:
    """`n` prompts of many pictures, 64 visual tokens each, and a question about one digit in one of them.

    Every picture holds one to `n_things` digits. The colour and the digit of the asked one appear nowhere else. Its box
    is the evidence. Sample i depends on `seed` and i alone.
    """
    for index in range(n):
        rng = np.random.default_rng([seed, index])
        haystack = draw_haystack(rng, n_pictures, n_things, 1, split)
        ((picture, thing),) = haystack.needles
        question, answer = ask_pairs(rng, [(thing.colour, thing.digit)])
        images = tuple(scene.image() for scene in haystack.scenes)
        yield Sample(
            f"haystack-{split}-{seed}-{index}", question, answer, images, (Evidence(thing.box, media=picture),)
        )


def texts(n: int, seed: int, task: str) -> Iterator[Sample]:
    """`n` questions of one text task; sample i depends on `seed` and i alone."""
    for index in range(n):
        question, answer = ask_text(np.random.default_rng([seed, index]), task)
        yield Sample(f"{task}-{seed}-{index}", question, answer)
