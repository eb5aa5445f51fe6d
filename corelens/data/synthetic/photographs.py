"""Photographs with pasted shapes and questions about their colours and shapes.

The photographs are the two that scikit-learn ships.
"""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from corelens.data.readers.base import Samples
from corelens.data.sample import Evidence, Sample
from corelens.data.synthetic.drawing import Colour, draw_shape, drawn_samples, sample_photographs
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


def _polygon(n: int, start: float = -90.0, inner: float = 1.0) -> list[tuple[float | int, float | int]]:
    """Corners on the unit circle, every other one moved inward to the radius `inner`."""
    corners = [(inner if corner % 2 else 1.0, math.radians(start + 360 * corner / n)) for corner in range(n)]
    return [(radius * math.cos(angle), radius * math.sin(angle)) for radius, angle in corners]


SHAPES: dict[str, list[tuple[float | int, float | int]]] = {
    "circle": _polygon(96),
    "square": _polygon(4, -45.0),
    "triangle": _polygon(3),
    "star": _polygon(10, inner=0.42),
    "diamond": [(0, -1), (0.62, 0), (0, 1), (-0.62, 0)],
    "cross": [
        (x * a, y * b)
        for x, y, steps in ((-1, -1, 0), (1, -1, 1), (1, 1, 0), (-1, 1, 1))
        for a, b in ([(1, 0.33), (0.33, 0.33), (0.33, 1)] if not steps else [(0.33, 1), (0.33, 0.33), (1, 0.33)])
    ],
}
"""Corners around the centre, at most one away from it."""


@dataclass(frozen=True)
class PastedShape:
    """A shape on a photograph."""

    shape: str
    colour: str
    centre: tuple[float, float]
    radius: float


@dataclass(frozen=True)
class PastedScene:
    """A part of a photograph and the shapes on it. No shape and no colour occurs twice."""

    photograph: int
    corner: tuple[int, int]
    mirrored: bool
    shapes: tuple[PastedShape, ...]


def photographs(n: int, seed: int = 0, n_things: int = 4) -> Samples:
    """Draw `n` photographs with `n_things` coloured shapes and a question about one shape, which is the evidence."""
    if not 1 <= n_things <= len(SHAPES):
        raise ValueError(f"n_things={n_things} is outside 1..{len(SHAPES)}: shapes must differ.")
    return drawn_samples("photographs", n, seed, partial(_sample, n_things))


def _sample(n_things: int, seed: int, index: int) -> Sample:
    rng = np.random.default_rng([seed, index])
    scene = draw_pasted_scene(rng, tuple(rng.permutation(list(SHAPES))[:n_things]))
    number = int(rng.integers(n_things))
    pasted = scene.shapes[number]
    task, question, answer = "colour", f"What colour is the {pasted.shape}?", pasted.colour
    if rng.random() < 0.5:
        task, question, answer = "shape", f"Which shape is {pasted.colour}?", pasted.shape
    return Sample(
        f"photographs-{seed}-{index}",
        question,
        answer,
        (partial(render_scene, scene),),
        (Evidence(shape_boxes(scene)[number]),),
        scoring="contains",
        about={"task": task, "shape": pasted.shape, "colour": pasted.colour},
    )


def draw_pasted_scene(
    rng: np.random.Generator, shapes: tuple[str, ...], colours: tuple[str, ...] | None = None
) -> PastedScene:
    """Draw shapes at free places of a random part of a photograph; their colours are random unless given."""
    if colours is None:
        colours = tuple(str(colour) for colour in rng.permutation(list(COLOURS))[: len(shapes)])
    pasted: list[PastedShape] = []
    while len(pasted) < len(shapes):
        radius = float(rng.uniform(20, 34))
        x, y = (float(rng.uniform(radius + 6, extent - radius - 6)) for extent in SIZE)
        if all(math.dist((x, y), other.centre) > 1.5 * (radius + other.radius) for other in pasted):
            pasted.append(PastedShape(str(shapes[len(pasted)]), colours[len(pasted)], (x, y), radius))
    photograph = int(rng.integers(2))
    height, width, _ = sample_photographs()[photograph].shape
    corner = (int(rng.integers(width - SIZE[0] + 1)), int(rng.integers(height - SIZE[1] + 1)))
    return PastedScene(photograph, corner, bool(rng.random() < 0.5), tuple(pasted))


def render_scene(scene: PastedScene) -> Image.Image:
    """Draw the picture of a scene."""
    return _render_with_boxes(scene)[0]


def shape_boxes(scene: PastedScene) -> list[Box]:
    """Smallest box around each shape, its outline included."""
    return _render_with_boxes(scene)[1]


def _render_with_boxes(scene: PastedScene) -> tuple[Image.Image, list[Box]]:
    left, top = scene.corner
    region = sample_photographs()[scene.photograph][top : top + SIZE[1], left : left + SIZE[0]]
    picture = Image.fromarray(region[:, ::-1] if scene.mirrored else region)
    boxes = []
    for pasted in scene.shapes:
        x, y = pasted.centre
        corners = [(x + pasted.radius * right, y + pasted.radius * down) for right, down in SHAPES[pasted.shape]]
        boxes.append(draw_shape(picture, corners, COLOURS[pasted.colour]))
    return picture, boxes
