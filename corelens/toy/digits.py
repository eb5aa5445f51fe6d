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
from corelens.toy.scene import (
    COLOURS,
    DIGITS,
    SIDE,
    Mark,
    Scene,
    Split,
    Thing,
    World,
    free_boxes,
    random_crop,
    random_keys,
)

_TRAIN_DIGITS = 1_400


@cache
def glyphs(split: Split) -> dict[str, Float[np.ndarray, "glyph 8 8"]]:
    """The handwritten digits of one split, ink from 0 to 1, by digit."""
    with optional_import("app"):
        from sklearn.datasets import load_digits

    data: Any = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    indices = order[:_TRAIN_DIGITS] if split == "train" else order[_TRAIN_DIGITS:]
    ink = (data.images[indices] / 16).astype(np.float32)
    return {digit: ink[data.target[indices] == int(digit)] for digit in DIGITS}


def _background(rng: np.random.Generator, split: Split) -> Float[np.ndarray, "row column 3"]:
    """Coloured noise or, half of the time, a photograph crop, darkened so that every tint stays visible."""
    if rng.random() < 0.5:
        base = rng.uniform(0, 110, 3)
        return np.clip(base + rng.normal(0, rng.uniform(5, 35), (SIDE, SIDE, 3)), 0, 255).astype(np.float32)
    return random_crop(rng, split) * rng.uniform(0.3, 0.6)


def draw_scene(rng: np.random.Generator, n_things: int, split: Split, distinct: bool = True) -> Scene:
    """Draw a cluttered scene.

    Args:
        rng: Source of all random draws.
        n_things: Number of digits; with `distinct`, at most 8, since colours must differ.
        split: Split of the handwritten digits and photograph regions.
        distinct: No digit and no colour appears twice, so that questions have one answer.
    """
    if distinct and not 1 <= n_things <= len(COLOURS):
        raise ValueError(f"n_things={n_things} is outside 1..{len(COLOURS)}: the colours of digits must differ.")
    canvas = _background(rng, split)
    boxes = free_boxes(rng, n_things)
    digits = rng.choice(DIGITS, len(boxes), replace=not distinct)
    colours = rng.choice(tuple(COLOURS), len(boxes), replace=not distinct)
    return _paint(rng, canvas, boxes, [(str(c), str(d)) for c, d in zip(colours, digits, strict=True)], split)


def draw(rng: np.random.Generator, pairs: list[tuple[str, str]], split: Split) -> Scene:
    """Draw the scene of colours and their digits; pairs without a free place are left out, the last ones first."""
    canvas, boxes = _background(rng, split), free_boxes(rng, len(pairs))
    return _paint(rng, canvas, boxes, pairs, split)


def _paint(
    rng: np.random.Generator,
    canvas: Float[np.ndarray, "row column 3"],
    boxes: list[Box],
    pairs: list[tuple[str, str]],
    split: Split,
) -> Scene:
    """Paint a digit in its colour into every box; pairs without a box are left out."""
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
    choose=random_keys(2, 6),
    draw=draw,
    value_question="which digit is {key} ?",
    key_question="what colour is the {value} ?",
    value_name="digit",
    key_name="colour",
)
