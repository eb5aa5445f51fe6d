"""Photographs with coloured shapes pasted into their clutter."""

import math

import numpy as np
from PIL import Image

from corelens.data.synthetic import drawing
from corelens.data.synthetic.photographs import SHAPES
from corelens.toy.scene import COLOURS, Mark, Scene, Split, Thing, World, clipped, crop, free_boxes, some

_TINTS = {name: tint for name, tint in COLOURS.items() if name != "white"}
"""Shapes have a white outline, so none is white."""


def draw(rng: np.random.Generator, pairs: list[tuple[str, str]], split: Split) -> Scene:
    """The photograph with some colours and their shapes; what finds no place is left out, the last ones first."""
    # Two photographs are few: mirrored, and brighter or darker, they are more.
    photograph = crop(rng, split)[:, :: rng.choice((-1, 1))] * rng.uniform(0.5, 1.3)
    picture = Image.fromarray(np.clip(photograph, 0, 255).astype(np.uint8))
    things = []
    for place, (colour, shape) in zip(free_boxes(rng, len(pairs)), pairs, strict=False):
        # The square holds the shape and its outline.
        radius = (place.right - place.left) / 2 - 1
        x, y = (place.left + place.right) / 2, (place.top + place.bottom) / 2
        turn = math.radians(rng.uniform(-12, 12))
        corners = [
            (
                x + radius * (right * math.cos(turn) - down * math.sin(turn)),
                y + radius * (right * math.sin(turn) + down * math.cos(turn)),
            )
            for right, down in SHAPES[shape]
        ]
        red, green, blue = (int(np.clip(part + rng.normal(0, 12), 0, 255)) for part in _TINTS[colour])
        things.append(Thing(colour, shape, clipped(drawing.shape(picture, corners, (red, green, blue)))))
    marks = tuple(Mark(thing.value, thing.key, thing.box) for thing in things)
    return Scene(np.asarray(picture), tuple(things), marks)


WORLD = World(
    keys=tuple(_TINTS),
    values=tuple(SHAPES),
    choose=some(2, 5),
    draw=draw,
    of_value="which shape is {key} ?",
    of_key="what colour is the {value} ?",
)
