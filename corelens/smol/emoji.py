"""Emoji scenes: six framed things, each with a number beside it, in English that the language model knows.

Up to eight drawings of every emoji are for training; the last, Twemoji's, is for testing. The splits also share no
arrangement, no font and no pair of a thing and its number. `emoji/LICENSES.md` names the artists.
"""

from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from corelens.smol.question import LabelledBox, Question, QuestionedPicture
from corelens.tokens import Box
from corelens.toy.pages import Printer, random_layout
from corelens.toy.scene import COLOURS, DIGITS, SIDE, Split, random_crop

EMOJI = (
    *("guitar", "strawberry", "cat", "dog", "car", "bus", "bicycle", "apple", "banana", "grapes", "lemon", "carrot"),
    *("pizza", "key", "book", "clock", "camera", "umbrella", "crown", "hat", "shoe", "balloon", "gift", "bell"),
    *("drum", "trumpet", "rocket", "plane", "boat", "train", "tree", "flower", "cactus", "mushroom", "moon", "cloud"),
    *("fire", "house", "fish", "whale", "octopus", "crab", "turtle", "frog", "penguin", "bee", "butterfly", "snail"),
    *("pig", "lion", "panda", "rabbit", "elephant", "ball", "heart", "robot", "cup", "trophy"),
)
"""Names of the things, in the order of the drawings."""

VENDORS: dict[Split, tuple[str, ...]] = {
    "train": ("noto", "blob", "emojione", "fluent", "fluent3d", "openmoji", "fxemoji", "streamline"),
    "test": ("twemoji",),
}

FRAMES = {name: COLOURS[name] for name in ("red", "orange", "yellow", "green", "blue", "purple")} | {
    "black": (20, 20, 20)
}
"""Colours of the frames."""

_GLYPH = 40
_FRAME = 34
N_THINGS = 6


@cache
def drawings(vendor: str) -> dict[str, UInt8[np.ndarray, "row column channel"]]:
    """Drawings of one vendor, with transparency, by name; two vendors did not draw everything."""
    sheet = np.asarray(Image.open(Path(__file__).parent / "emoji" / f"{vendor}.webp").convert("RGBA"))
    cells = {name: sheet[:, index * _GLYPH : (index + 1) * _GLYPH] for index, name in enumerate(EMOJI)}
    return {name: cell for name, cell in cells.items() if cell[..., 3].any()}


def draw(rng: np.random.Generator, split: Split) -> QuestionedPicture:
    """Draw six things in a grid, and ask for numbers, things, colours and neighbours."""
    style = random_layout(
        rng, split, n_columns=(2, 3), number=("after", "before"), shift=(0, 2, 4, 6), frame=(2, 3), size=(24, 26, 28)
    )  # fmt: skip
    n_columns = style["n_columns"]
    n_rows = N_THINGS // n_columns
    canvas = _background(rng, split)
    picture = Image.fromarray(canvas)
    printer = Printer(rng, picture, split, (14, 16))
    pairs = _pairs(rng, split)
    colours = [str(colour) for colour in rng.permutation(list(FRAMES))[:N_THINGS]]
    cells = list(product(range(n_rows), range(n_columns)))
    things, labels = {}, []
    for (row, column), (name, number), colour in zip(cells, pairs, colours, strict=True):
        frame, number_box = _place(rng, row, column, n_rows, n_columns, style["number"], style["shift"])
        _paint_thing(rng, picture, frame, name, FRAMES[colour], style["frame"], style["size"], split)
        centre = ((number_box.left + number_box.right) / 2, (number_box.top + number_box.bottom) / 2)
        plate = (centre[0] - 7, centre[1] - 8, centre[0] + 7, centre[1] + 8)
        ImageDraw.Draw(picture).rectangle(plate, (250, 250, 250))
        printer.write(centre, number, (15, 15, 15), "mm")
        things[row, column] = (name, number, colour, frame, Box(*plate))
        labels += [LabelledBox((name, colour), frame), LabelledBox((number, name), Box(*plate))]
    return QuestionedPicture(picture, tuple(_questions(things)), tuple(labels))


def _background(rng: np.random.Generator, split: Split) -> UInt8[np.ndarray, "row column 3"]:
    """Pale noise or, half of the time, a bleached part of a photograph."""
    if rng.random() < 0.5:
        plain = rng.uniform(150, 235, 3) + rng.normal(0, rng.uniform(0, 12), (SIDE, SIDE, 3))
    else:
        share = rng.uniform(0.2, 0.45)
        plain = random_crop(rng, split) * share + 225 * (1 - share)
    return np.clip(plain, 0, 255).astype(np.uint8)


def _pairs(rng: np.random.Generator, split: Split) -> list[tuple[str, str]]:
    """Six things and their numbers, none twice; every fifth of all pairs is for testing, all others for training."""
    pairs: list[tuple[str, str]] = []
    for digit in rng.permutation(DIGITS)[:N_THINGS]:
        used = {name for name, _ in pairs}
        free = [
            name
            for index, name in enumerate(EMOJI)
            if ((index + int(digit)) % 5 == 0) == (split == "test") and name not in used
        ]
        pairs.append((str(rng.choice(free)), str(digit)))
    return [pairs[index] for index in rng.permutation(N_THINGS)]


def _place(
    rng: np.random.Generator, row: int, column: int, n_rows: int, n_columns: int, number: str, shift: int
) -> tuple[Box, Box]:
    """Boxes of the frame and of the number: above one another in three columns, side by side in two."""
    width, height = SIDE / n_columns, SIDE / n_rows
    beside = n_columns == 2
    block = (_FRAME + 16, _FRAME) if beside else (_FRAME, _FRAME + 18)
    slack = (width - block[0], height - block[1])
    left = column * width + min(slack[0], shift + rng.integers(0, 3)) if slack[0] > 0 else column * width
    top = row * height + min(slack[1], shift + rng.integers(0, 3)) if slack[1] > 0 else row * height
    left, top = round(left), round(top)
    first = number == "before"
    if beside:
        frame = Box(left + 16 * first, top, left + 16 * first + _FRAME, top + _FRAME)
        number_left = left if first else left + _FRAME + 1
        return frame, Box(number_left, top + 9, number_left + 14, top + 25)
    frame = Box(left, top + 18 * first, left + _FRAME, top + 18 * first + _FRAME)
    number_top = top if first else top + _FRAME + 1
    return frame, Box(left + 10, number_top, left + 24, number_top + 16)


def _paint_thing(
    rng: np.random.Generator,
    picture: Image.Image,
    frame: Box,
    name: str,
    colour: tuple[int, int, int],
    width: int,
    size: int,
    split: Split,
) -> None:
    """Paint the frame, the light field in it and the emoji."""
    tint = tuple(int(np.clip(channel + rng.normal(0, 8), 0, 255)) for channel in colour)
    corners = (frame.left, frame.top, frame.right - 1, frame.bottom - 1)
    field = tuple(int(channel) for channel in rng.uniform(235, 256, 3))
    ImageDraw.Draw(picture).rectangle(corners, field, tint, width)
    drawn = [drawings(vendor)[name] for vendor in VENDORS[split] if name in drawings(vendor)]
    glyph = Image.fromarray(drawn[rng.integers(len(drawn))])
    if split == "train":  # Few drawings must stand for all that others would make of the same thing.
        glyph = _varied(rng, glyph)
    glyph = glyph.resize((size, size), Image.Resampling.BILINEAR)
    slack = _FRAME - 2 * width - size
    offset = [width + int(rng.integers(0, max(1, slack + 1))) for _ in range(2)]
    picture.paste(glyph, (int(frame.left) + offset[0], int(frame.top) + offset[1]), glyph)


def _varied(rng: np.random.Generator, glyph: Image.Image) -> Image.Image:
    """Mirror a drawing half of the time, turn it a little and change its tint."""
    if rng.random() < 0.5:
        glyph = glyph.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    array = np.asarray(glyph.rotate(rng.uniform(-12, 12), Image.Resampling.BILINEAR)).astype(np.float32)
    array[..., :3] = array[..., :3] * rng.uniform(0.75, 1.25, 3) + rng.uniform(-15, 15)
    return Image.fromarray(np.clip(array, 0, 255).astype(np.uint8))


def _questions(things: dict[tuple[int, int], tuple[str, str, str, Box, Box]]) -> list[Question]:
    """All questions about a scene. The evidence is where the answer stands."""
    questions = []
    for (row, column), (name, number, colour, frame, number_box) in things.items():
        questions += [
            Question(f"Which number is next to the {name}?", number, number_box, "number"),
            Question(f"What is next to the number {number}?", name, frame, "thing by number"),
            Question(f"What colour is the frame of the {name}?", colour, frame, "colour"),
            Question(f"What is in the {colour} frame?", name, frame, "thing by colour"),
        ]
        for step, side in ((-1, "left"), (1, "right")):
            if (neighbour := things.get((row, column + step))) is not None:
                questions.append(Question(f"What is {side} of the {name}?", neighbour[0], neighbour[3], "neighbour"))
    return questions
