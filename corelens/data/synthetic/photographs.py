"""Photographs with things pasted on them: what colour is which?

The photographs are the two that scikit-learn ships.
"""

import math
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from PIL import Image

from corelens.data.readers.base import Samples
from corelens.data.sample import Evidence, Sample
from corelens.data.synthetic.drawing import Colour, drawn, shape
from corelens.errors import optional_import
from corelens.tokens import Box

SIZE = (448, 336)
COLOURS: dict[str, Colour] = {
    "red": (225, 30, 35),
    "orange": (255, 140, 0),
    "yellow": (250, 230, 40),
    "green": (35, 165, 60),
    "blue": (35, 75, 225),
    "purple": (140, 50, 190),
    "pink": (255, 130, 190),
}


def _round(n: int, start: float = -90.0, inner: float = 1.0) -> list[tuple[float | int, float | int]]:
    """Corners on the unit circle, every other one moved inward."""
    corners = [(inner if corner % 2 else 1.0, math.radians(start + 360 * corner / n)) for corner in range(n)]
    return [(radius * math.cos(angle), radius * math.sin(angle)) for radius, angle in corners]


SHAPES: dict[str, list[tuple[float | int, float | int]]] = {
    "circle": _round(96),
    "square": _round(4, -45.0),
    "triangle": _round(3),
    "star": _round(10, inner=0.42),
    "diamond": [(0, -1), (0.62, 0), (0, 1), (-0.62, 0)],
    "cross": [
        (x * a, y * b)
        for x, y, steps in ((-1, -1, 0), (1, -1, 1), (1, 1, 0), (-1, 1, 1))
        for a, b in ([(1, 0.33), (0.33, 0.33), (0.33, 1)] if not steps else [(0.33, 1), (0.33, 0.33), (1, 0.33)])
    ],
}
"""Corners around the centre, at most one away from it."""


@dataclass(frozen=True)
class Pasted:
    """One thing on a photograph."""

    shape: str
    colour: str
    centre: tuple[float, float]
    radius: float


@dataclass(frozen=True)
class Scene:
    """A part of a photograph and the things on it. No shape and no colour occurs twice."""

    photograph: int
    corner: tuple[int, int]
    mirrored: bool
    things: tuple[Pasted, ...]


def photographs(n: int, seed: int = 0, n_things: int = 4) -> Samples:
    """`n` photographs with `n_things` coloured shapes on each and one question; the evidence is the shape asked for."""
    if not 1 <= n_things <= len(SHAPES):
        raise ValueError(f"n_things={n_things} is outside 1..{len(SHAPES)}: every thing needs a shape of its own.")
    return drawn("photographs", n, seed, partial(_sample, n_things))


def _sample(n_things: int, seed: int, index: int) -> Sample:
    rng = np.random.default_rng([seed, index])
    scene = draw_things(rng, tuple(rng.permutation(list(SHAPES))[:n_things]))
    number = int(rng.integers(n_things))
    thing = scene.things[number]
    question, answer = f"What colour is the {thing.shape}?", thing.colour
    if rng.random() < 0.5:
        question, answer = f"Which shape is {thing.colour}?", thing.shape
    return Sample(
        f"photographs-{seed}-{index}",
        question,
        answer,
        (partial(paste, scene),),
        (Evidence(boxes_of(scene)[number]),),
        scoring="contains",
        about={"shape": thing.shape, "colour": thing.colour},
    )


def draw_things(rng: np.random.Generator, shapes: tuple[str, ...], colours: tuple[str, ...] | None = None) -> Scene:
    """Things of given shapes at free places of a random part of a photograph; colours at random unless given."""
    if colours is None:
        colours = tuple(str(colour) for colour in rng.permutation(list(COLOURS))[: len(shapes)])
    things: list[Pasted] = []
    while len(things) < len(shapes):
        radius = float(rng.uniform(20, 34))
        x, y = (float(rng.uniform(radius + 6, extent - radius - 6)) for extent in SIZE)
        if all(math.dist((x, y), other.centre) > 1.5 * (radius + other.radius) for other in things):
            things.append(Pasted(str(shapes[len(things)]), colours[len(things)], (x, y), radius))
    photograph = int(rng.integers(2))
    height, width, _ = _stored()[photograph].shape
    corner = (int(rng.integers(width - SIZE[0] + 1)), int(rng.integers(height - SIZE[1] + 1)))
    return Scene(photograph, corner, bool(rng.random() < 0.5), tuple(things))


def paste(scene: Scene) -> Image.Image:
    """The picture of a scene."""
    return _pasted(scene)[0]


def boxes_of(scene: Scene) -> list[Box]:
    """The smallest box around each thing, its outline included."""
    return _pasted(scene)[1]


def _pasted(scene: Scene) -> tuple[Image.Image, list[Box]]:
    left, top = scene.corner
    part = _stored()[scene.photograph][top : top + SIZE[1], left : left + SIZE[0]]
    picture = Image.fromarray(part[:, ::-1] if scene.mirrored else part)
    boxes = []
    for thing in scene.things:
        x, y = thing.centre
        corners = [(x + thing.radius * right, y + thing.radius * down) for right, down in SHAPES[thing.shape]]
        boxes.append(shape(picture, corners, COLOURS[thing.colour]))
    return picture, boxes


@cache
def _stored() -> list[Any]:
    with optional_import("app"):
        from sklearn.datasets import load_sample_images

    return [np.ascontiguousarray(picture) for picture in load_sample_images().images]
