"""Scenes of handwritten digits: tinted, enlarged and placed freely on noise or on a crop of a photograph.

The digits are the 8 x 8 ones that scikit-learn ships. `split="train"` and `split="test"` never share one.
"""

from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from corelens.errors import optional_import
from corelens.tokens import Box
from corelens.toy.scene import COLOURS, DIGITS, SIDE, Mark, Scene, Split, Thing, World, crop, free_boxes, some

_TRAIN_DIGITS = 1_400


@cache
def glyphs(split: Split) -> dict[str, Float[np.ndarray, "glyph 8 8"]]:
    """The handwritten digits of one split, ink from 0 to 1, by the digit they show."""
    with optional_import("app"):
        from sklearn.datasets import load_digits

    data: Any = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    chosen = order[:_TRAIN_DIGITS] if split == "train" else order[_TRAIN_DIGITS:]
    ink = (data.images[chosen] / 16).astype(np.float32)
    return {digit: ink[data.target[chosen] == int(digit)] for digit in DIGITS}


def _background(rng: np.random.Generator, split: Split) -> Float[np.ndarray, "row column 3"]:
    """Half the time coloured noise, half the time a darkened photograph crop, so that every tint stays visible."""
    if rng.random() < 0.5:
        base = rng.uniform(0, 110, 3)
        return np.clip(base + rng.normal(0, rng.uniform(5, 35), (SIDE, SIDE, 3)), 0, 255).astype(np.float32)
    return crop(rng, split) * rng.uniform(0.3, 0.6)


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
    boxes = free_boxes(rng, n_things)
    digits = rng.choice(DIGITS, len(boxes), replace=not distinct)
    colours = rng.choice(tuple(COLOURS), len(boxes), replace=not distinct)
    return _paint(rng, canvas, boxes, [(str(c), str(d)) for c, d in zip(colours, digits, strict=True)], split)


def draw(rng: np.random.Generator, pairs: list[tuple[str, str]], split: Split) -> Scene:
    """The scene of some colours and their digits; what finds no place is left out, the last ones first."""
    canvas, boxes = _background(rng, split), free_boxes(rng, len(pairs))
    return _paint(rng, canvas, boxes, pairs, split)


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
        ink = glyphs(split)[digit]
        size = int(box.right - box.left)
        glyph = Image.fromarray(ink[rng.integers(len(ink))]).resize((size, size), Image.Resampling.BILINEAR)
        tint = np.clip(np.array(COLOURS[colour]) + rng.normal(0, 8, 3), 0, 255)
        region = (slice(int(box.top), int(box.bottom)), slice(int(box.left), int(box.right)))
        opacity = np.asarray(glyph)[..., None]
        canvas[region] = canvas[region] * (1 - opacity) + tint * opacity
        things.append(Thing(colour, digit, box))
    marks = tuple(Mark(thing.value, thing.key, thing.box) for thing in things)
    return Scene(np.clip(canvas, 0, 255).astype(np.uint8), tuple(things), marks)


WORLD = World(
    keys=tuple(COLOURS),
    values=DIGITS,
    choose=some(2, 6),
    draw=draw,
    of_value="which digit is {key} ?",
    of_key="what colour is the {value} ?",
)
