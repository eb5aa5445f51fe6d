"""Printed pages: fields with their values, and a small table."""

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from io import BytesIO
from itertools import product
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from corelens.data.synthetic.drawing import default_font
from corelens.tokens import Box
from corelens.toy.scene import DIGITS, SIDE, Mark, Scene, Split, Thing, World, clip

TRAIN_FONTS = (
    *("SourceSansPro", "SourceSansProSemibold", "SourceSansProBold", "SourceSansProIt", "SourceSerifPro"),
    *("SourceSerifProSemibold", "HankenGrotesk", "HankenGroteskMedium", "HankenGroteskBold", "HankenGroteskItalic"),
    *("ManropeMedium", "ManropeBold", "Caladea", "CaladeaBold", "Roboto", "RobotoMedium", "RobotoBold"),
    *("NotoSans_Regular", "NotoSans_Bold", "NotoSans_Italic", "Ubuntu_Regular", "Ubuntu_Bold", "Ubuntu_Italic"),
    *("FiraGO_Regular", "FiraGO_Bold", "FiraGO_Italic"),
)
"""Fonts of pages and charts of the train split; the test split has the one font that Pillow ships."""


@cache
def split_font(split: Split, number: int, size: float) -> ImageFont.FreeTypeFont:
    """Load a font of a split.

    Raises:
        ImportError: If a training font is not installed.
    """
    if split == "test":
        return default_font(size)
    name = TRAIN_FONTS[number]
    try:
        # The package pymupdf_fonts has a module for each of its fonts.
        file = BytesIO(import_module(f"pymupdf_fonts.{name}").fontbuffer) if "_" in name else _package_fonts()[name]
    except (ImportError, KeyError):
        raise ImportError(
            f"the font {name} is not installed: pages and charts to train on need pip install 'corelens[train]'"
        ) from None
    return ImageFont.truetype(file, size)


@cache
def _package_fonts() -> dict[str, str]:
    """Paths of the fonts that installed packages declare, by name."""
    groups = (entry_points(group=group) for group in ("fonts_otf", "fonts_ttf"))
    return {name: path for group in groups for entry in group for name, path in entry.load().items()}


class Printer:
    """Printer of words on a picture, in one font."""

    def __init__(self, rng: np.random.Generator, picture: Image.Image, split: Split, sizes: tuple[int, int]) -> None:
        number, size = int(rng.integers(len(TRAIN_FONTS))), float(rng.integers(sizes[0], sizes[1] + 1))
        if split == "train":  # Fractional sizes give the same letter other pixels.
            size += float(rng.integers(-2, 3)) / 4
        self.font = split_font(split, number, size)
        self.draw = ImageDraw.Draw(picture)

    def write(
        self, position: tuple[float | int, float | int], text: str, ink: tuple[int, int, int], anchor: str = "ls"
    ) -> Box:
        """Write text at a position, the left end of its baseline by default, and return its box."""
        self.draw.text(position, text, ink, self.font, anchor)
        return clip(Box(*self.draw.textbbox(position, text, self.font, anchor)))


def random_layout(rng: np.random.Generator, split: Split, **choices: Sequence[Any]) -> dict[str, Any]:
    """Draw a combination of the choices; every fifth one belongs to the test split, all others to train."""
    combinations = list(product(*choices.values()))
    candidates = [c for number, c in enumerate(combinations) if (number % 5 == 0) == (split == "test")]
    return dict(zip(choices, candidates[rng.integers(len(candidates))], strict=True))


FIELDS = ("total", "room", "year", "code", "desk", "floor")
ITEMS = ("bolt", "cable", "hinge", "lamp", "valve")
COLUMNS = ("price", "stock", "size")


def choose(rng: np.random.Generator, keys: tuple[str, ...], with_key: str | None) -> tuple[str, ...]:
    """Choose two or three fields and a table of two items and two columns, as far as these are among the keys."""
    required = (with_key or "").split()

    def pick(words: tuple[str, ...], n: int) -> list[str]:
        others = [str(word) for word in rng.permutation([word for word in words if word not in required])]
        return [*(word for word in words if word in required), *others][:n]

    fields = [word for word in pick(FIELDS, int(rng.integers(2, 4))) if word in keys]
    items, columns = pick(ITEMS, 2), pick(COLUMNS, 2)
    cells = [f"{item} {column}" for item in items for column in columns]
    return (*fields, *(cell for cell in cells if cell in keys))


def draw(rng: np.random.Generator, pairs: list[tuple[str, str]], split: Split) -> Scene:
    """Draw the page of keys and their values; table cells without a key stay empty."""
    style = random_layout(
        rng, split, left=(3, 6, 9, 12), value=(60, 68, 76, 84), pitch=(16, 17, 18), table_first=(False, True),
        gap=(2, 6, 10), columns=((70, 112), (74, 118), (78, 123)),
    )  # fmt: skip
    paper, ink = rng.uniform(225, 256, 3), rng.uniform(0, 70, 3)
    grain = rng.normal(0, rng.uniform(0, 6), (SIDE, SIDE, 3))
    picture = Image.fromarray(np.clip(paper + grain, 0, 255).astype(np.uint8))
    printer, black = Printer(rng, picture, split, (13, 15)), (int(ink[0]), int(ink[1]), int(ink[2]))
    things, marks = [], []

    def write(x: int, y: int, word: str, anchor: str, *partners: str) -> Mark:
        mark = Mark(word, None, printer.write((x, y), word, black, anchor), partners)
        marks.append(mark)
        return mark

    fields = [(key, value) for key, value in pairs if " " not in key]
    cells = {tuple(key.split()): value for key, value in pairs if " " in key}
    items, columns = (list(dict.fromkeys(cell[part] for cell in cells)) for part in (0, 1))
    rng.shuffle(items)
    rng.shuffle(columns)
    rng.shuffle(fields)

    def write_fields(y: int) -> int:
        for name, value in fields:
            y += style["pitch"]
            write(style["left"], y, name, "ls", value)
            things.append(Thing(name, value, write(style["value"], y, value, "ls", name).box))
        return y

    def write_table(y: int) -> int:
        if not cells:
            return y
        y += style["pitch"]
        for x, column in zip(style["columns"], columns, strict=False):
            write(x, y, column, "rs")
        ImageDraw.Draw(picture).line((style["left"], y + 4, SIDE - 4, y + 4), black)
        for item in items:
            y += style["pitch"]
            write(style["left"], y, item, "ls")
            for x, column in zip(style["columns"], columns, strict=False):
                if (value := cells.get((item, column))) is not None:
                    things.append(Thing(f"{item} {column}", value, write(x, y, value, "rs", item, column).box))
        return y

    parts = [write_table, write_fields] if style["table_first"] else [write_fields, write_table]
    parts[1](parts[0](int(rng.integers(0, 6))) + style["gap"])
    return Scene(np.asarray(picture), tuple(things), tuple(marks))


WORLD = World(
    keys=(*FIELDS, *(f"{item} {column}" for item in ITEMS for column in COLUMNS)),
    values=DIGITS,
    choose=choose,
    draw=draw,
    value_question="what is the {key} ?",
    key_question="which field says {value} ?",
    value_name="value",
    key_name="field",
)
