"""Photographs with coloured shapes pasted into them."""

import math

import numpy as np
from PIL import Image

from corelens.data.synthetic.drawing import draw_shape
from corelens.data.synthetic.photographs import SHAPES
from corelens.toy.scene import COLOURS, Mark, Scene, Split, Thing, World, clip, free_boxes, random_crop, random_keys

_TINTS = {name: tint for name, tint in COLOURS.items() if name != "white"}
"""Shapes have a white outline, so none is white."""


def draw(rng: np.random.Generator, pairs: list[tuple[str, str]], split: Split) -> Scene:
    """Draw a photograph with colours and their shapes; pairs without a free place are left out, the last ones first."""
    # Mirrored and with other brightness, since two photographs are few.
    photograph = random_crop(rng, split)[:, :: rng.choice((-1, 1))] * rng.uniform(0.5, 1.3)
    picture = Image.fromarray(np.clip(photograph, 0, 255).astype(np.uint8))
    things = []
    for square, (colour, shape) in zip(free_boxes(rng, len(pairs)), pairs, strict=False):
        # The square includes the outline.
        radius = (square.right - square.left) / 2 - 1
        x, y = (square.left + square.right) / 2, (square.top + square.bottom) / 2
        angle = math.radians(rng.uniform(-12, 12))
        corners = [
            (
                x + radius * (right * math.cos(angle) - down * math.sin(angle)),
                y + radius * (right * math.sin(angle) + down * math.cos(angle)),
            )
            for right, down in SHAPES[shape]
        ]
        red, green, blue = (int(np.clip(channel + rng.normal(0, 12), 0, 255)) for channel in _TINTS[colour])
        things.append(Thing(colour, shape, clip(draw_shape(picture, corners, (red, green, blue)))))
    marks = tuple(Mark(thing.value, thing.key, thing.box) for thing in things)
    return Scene(np.asarray(picture), tuple(things), marks)


WORLD = World(
    keys=tuple(_TINTS),
    values=tuple(SHAPES),
    choose=random_keys(2, 5),
    draw=draw,
    value_question="which shape is {key} ?",
    key_question="what colour is the {value} ?",
    value_name="shape",
    key_name="colour",
)
