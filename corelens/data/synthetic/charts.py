"""Bar charts with questions about the value of a bar or the highest bar."""

from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image, ImageDraw

from corelens.data.readers.base import Samples
from corelens.data.sample import Evidence, Sample
from corelens.data.synthetic.drawing import Colour, drawn_samples, write
from corelens.tokens import Box

SIZE = (640, 480)
LEFT, TOP, RIGHT, BOTTOM = 76, 84, 610, 410
LABELS = ("Lima", "Oslo", "Cairo", "Delhi", "Paris", "Quito", "Seoul", "Tunis", "Accra", "Hanoi", "Riga", "Bern")
TOPICS = ("Visitors in thousands", "Rainy days a year", "Tons of coffee", "New libraries", "Buses in service")
COLOURS: tuple[Colour, ...] = ((52, 101, 164), (204, 98, 40), (67, 140, 90), (130, 80, 150), (180, 60, 70))


@dataclass(frozen=True)
class Chart:
    """Contents of a chart. No two bars have the same height."""

    topic: str
    colour: Colour
    values: dict[str, int]


def charts(n: int, seed: int = 0) -> Samples:
    """Draw `n` charts with one question each, about the value of a bar or the highest bar; the evidence is that bar.

    Values are multiples of five from 10 to 95, above an axis with lines at every ten; they are not written on the bars.
    """
    return drawn_samples("charts", n, seed, _sample)


def _sample(seed: int, index: int) -> Sample:
    rng = np.random.default_rng([seed, index])
    chart = draw_contents(rng)
    label = str(rng.choice(list(chart.values)))
    task, question, answer, scoring = "value", f"What is the value of {label}?", str(chart.values[label]), "numeric"
    if rng.random() < 0.5:
        label = max(chart.values, key=lambda name: chart.values[name])
        task, question, answer, scoring = "highest", "Which city has the highest bar?", label, "contains"
    return Sample(
        f"charts-{seed}-{index}",
        question,
        answer,
        (partial(_picture, seed, index),),
        (Evidence(draw_chart(chart)[1][label]),),
        scoring=scoring,
        about={"task": task, "bar": label},
    )


def _picture(seed: int, index: int) -> Image.Image:
    return draw_chart(draw_contents(np.random.default_rng([seed, index])))[0]


def draw_contents(rng: np.random.Generator) -> Chart:
    """Draw the contents of a random chart."""
    n = int(rng.integers(4, 8))
    labels, heights = rng.choice(LABELS, n, replace=False), rng.choice(np.arange(10, 100, 5), n, replace=False)
    values = {str(label): int(height) for label, height in zip(labels, heights, strict=True)}
    return Chart(str(rng.choice(TOPICS)), COLOURS[rng.integers(len(COLOURS))], values)


def draw_chart(chart: Chart) -> tuple[Image.Image, dict[str, Box]]:
    """Draw a chart and return it with the box of every bar."""
    picture = Image.new("RGB", SIZE, (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    write(picture, (SIZE[0] / 2, 46), chart.topic, 24, anchor="ms")

    def height(value: int) -> int:
        return BOTTOM - round(value * (BOTTOM - TOP) / 100)

    for value in range(0, 101, 10):
        draw.line((LEFT, height(value), RIGHT, height(value)), (205, 205, 210))
        write(picture, (LEFT - 12, height(value) + 5), str(value), 15, anchor="rs")
    boxes, step = {}, (RIGHT - LEFT) / len(chart.values)
    for column, (label, value) in enumerate(chart.values.items()):
        middle, half = LEFT + step * (column + 0.5), step * 0.3
        left, right = round(middle - half), round(middle + half)
        draw.rectangle((left, height(value), right - 1, BOTTOM - 1), chart.colour)
        boxes[label] = Box(left, height(value), right, BOTTOM)
        write(picture, (middle, BOTTOM + 28), label, 17, anchor="ms")
    draw.line((LEFT, BOTTOM, RIGHT, BOTTOM), (60, 60, 60), 2)
    return picture, boxes
