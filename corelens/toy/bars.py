"""Bar charts of days beside an axis of numbers."""

import numpy as np
from PIL import Image, ImageDraw

from corelens.tokens import Box
from corelens.toy.pages import Printer, random_layout
from corelens.toy.scene import DIGITS, SIDE, Mark, Scene, Split, Thing, World, random_keys

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_INKS = ((52, 101, 164), (204, 98, 40), (67, 140, 90), (130, 80, 150), (180, 60, 70), (90, 90, 100))


def draw(rng: np.random.Generator, pairs: list[tuple[str, str]], split: Split) -> Scene:
    """Draw the chart of days and their values; a thing is a bar and the day below it."""
    style = random_layout(
        rng, split, left=(13, 15, 17), bottom=(106, 109, 112), unit=(9.5, 10.0, 10.5), width=(0.5, 0.62, 0.74),
        lines=(False, True),
    )  # fmt: skip
    paper, ink = rng.uniform(228, 256, 3), _INKS[rng.integers(len(_INKS))]
    picture = Image.fromarray(np.tile(paper.astype(np.uint8), (SIDE, SIDE, 1)))
    pen, printer = ImageDraw.Draw(picture), Printer(rng, picture, split, (10, 11))
    left, bottom, unit = style["left"], style["bottom"], style["unit"]
    things, marks = [], []
    for number in range(1, 10):
        y = bottom - number * unit
        if style["lines"]:
            pen.line((left, y, SIDE - 3, y), (205, 205, 210))
        box = printer.write((left - 3, y), str(number), (60, 60, 60), "rm")
        if number % 2:  # Two numbers share a token.
            marks.append(Mark(str(number), None, box))
    step = (SIDE - 4 - left) / len(pairs)
    for column, (day, value) in enumerate(sorted(pairs, key=lambda _: rng.random())):
        middle, half = left + step * (column + 0.5), min(step, 30) * style["width"] / 2
        top = bottom - int(value) * unit
        pen.rectangle((middle - half, top, middle + half, bottom), ink)
        label = printer.write((middle, SIDE - 5), day, (30, 30, 30), "ms")
        top_edge = Box(middle - half, top - 4, middle + half, top + 4)
        marks += [Mark(day, None, label, (value,)), Mark(value, None, top_edge, (day,))]
        left_edge, right_edge = min(label.left, middle - half), max(label.right, middle + half)
        things.append(Thing(day, value, Box(left_edge, top, right_edge, label.bottom)))
    pen.line((left, bottom, SIDE - 3, bottom), (60, 60, 60))
    return Scene(np.asarray(picture), tuple(things), tuple(marks))


WORLD = World(
    keys=DAYS,
    values=DIGITS[1:],
    choose=random_keys(3, 5),
    draw=draw,
    value_question="how high is {key} ?",
    key_question="which day is {value} high ?",
    value_name="height",
    key_name="day",
)
