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

from corelens.tokens import Box
from corelens.toy.scene import DIGITS, SIDE, Mark, Scene, Split, Thing, World, clipped

TRAIN_FONTS = (
    *("SourceSansPro", "SourceSansProSemibold", "SourceSansProBold", "SourceSansProIt", "SourceSerifPro"),
    *("SourceSerifProSemibold", "HankenGrotesk", "HankenGroteskMedium", "HankenGroteskBold", "HankenGroteskItalic"),
    *("ManropeMedium", "ManropeBold", "Caladea", "CaladeaBold", "Roboto", "RobotoMedium", "RobotoBold"),
    *("NotoSans_Regular", "NotoSans_Bold", "NotoSans_Italic", "Ubuntu_Regular", "Ubuntu_Bold", "Ubuntu_Italic"),
    *("FiraGO_Regular", "FiraGO_Bold", "FiraGO_Italic"),
)
"""What pages and charts of the train split are printed in; the test split has the one font that Pillow ships."""


@cache
def font(split: Split, number: int, size: float) -> ImageFont.FreeTypeFont:
    """A font of a split.

    Raises:
        ImportError: If a training font is not installed.
    """
    if split == "test":
        found = ImageFont.load_default(size)
        assert isinstance(found, ImageFont.FreeTypeFont)  # Pillow without FreeType has no scalable one
        return found
    name = TRAIN_FONTS[number]
    try:
        # The package pymupdf_fonts has a module for each of its fonts.
        file = BytesIO(import_module(f"pymupdf_fonts.{name}").fontbuffer) if "_" in name else _packaged()[name]
    except (ImportError, KeyError):
        raise ImportError(
            f"the font {name} is not installed: pages and charts to train on need pip install 'corelens[train]'"
        ) from None
    return ImageFont.truetype(file, size)


@cache
def _packaged() -> dict[str, str]:
    """Path of every font that a package says it brings, by its name."""
    groups = (entry_points(group=group) for group in ("fonts_otf", "fonts_ttf"))
    return {name: path for group in groups for entry in group for name, path in entry.load().items()}


class Press:
    """Writes words on a picture in one font, and says where they stand."""

    def __init__(self, rng: np.random.Generator, picture: Image.Image, split: Split, sizes: tuple[int, int]) -> None:
        number, size = int(rng.integers(len(TRAIN_FONTS))), float(rng.integers(sizes[0], sizes[1] + 1))
        if split == "train":  # Sizes between draw the same letter with other pixels.
            size += float(rng.integers(-2, 3)) / 4
        self.font = font(split, number, size)
        self.draw = ImageDraw.Draw(picture)

    def write(
        self, place: tuple[float | int, float | int], text: str, ink: tuple[int, int, int], anchor: str = "ls"
    ) -> Box:
        """Writes at a place, the baseline's left end unless another anchor of Pillow is named."""
        self.draw.text(place, text, ink, self.font, anchor)
        return clipped(Box(*self.draw.textbbox(place, text, self.font, anchor)))


def layout(rng: np.random.Generator, split: Split, **choices: Sequence[Any]) -> dict[str, Any]:
    """A random combination of the choices; every fifth combination is of the test split, and the others of train."""
    combinations = list(product(*choices.values()))
    of_split = [c for number, c in enumerate(combinations) if (number % 5 == 0) == (split == "test")]
    return dict(zip(choices, of_split[rng.integers(len(of_split))], strict=True))


FIELDS = ("total", "room", "year", "code", "desk", "floor")
ITEMS = ("bolt", "cable", "hinge", "lamp", "valve")
COLUMNS = ("price", "stock", "size")


def choose(rng: np.random.Generator, keys: tuple[str, ...], with_key: str | None) -> tuple[str, ...]:
    """Two or three fields and a table of two items and two columns, as far as these are among the keys."""
    named = (with_key or "").split()

    def pick(words: tuple[str, ...], n: int) -> list[str]:
        others = [str(word) for word in rng.permutation([word for word in words if word not in named])]
        return [*(word for word in words if word in named), *others][:n]

    fields = [word for word in pick(FIELDS, int(rng.integers(2, 4))) if word in keys]
    items, columns = pick(ITEMS, 2), pick(COLUMNS, 2)
    cells = [f"{item} {column}" for item in items for column in columns]
    return (*fields, *(cell for cell in cells if cell in keys))


def draw(rng: np.random.Generator, pairs: list[tuple[str, str]], split: Split) -> Scene:
    """The page that says some keys and their values; a cell of the table that none of them names stays empty."""
    form = layout(
        rng, split, left=(3, 6, 9, 12), value=(60, 68, 76, 84), pitch=(16, 17, 18), table_first=(False, True),
        gap=(2, 6, 10), columns=((70, 112), (74, 118), (78, 123)),
    )  # fmt: skip
    paper, ink = rng.uniform(225, 256, 3), rng.uniform(0, 70, 3)
    grain = rng.normal(0, rng.uniform(0, 6), (SIDE, SIDE, 3))
    picture = Image.fromarray(np.clip(paper + grain, 0, 255).astype(np.uint8))
    press, black = Press(rng, picture, split, (13, 15)), (int(ink[0]), int(ink[1]), int(ink[2]))
    things, marks = [], []

    def say(x: int, y: int, word: str, anchor: str, *partners: str) -> Mark:
        mark = Mark(word, None, press.write((x, y), word, black, anchor), partners)
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
            y += form["pitch"]
            say(form["left"], y, name, "ls", value)
            things.append(Thing(name, value, say(form["value"], y, value, "ls", name).box))
        return y

    def write_table(y: int) -> int:
        if not cells:
            return y
        y += form["pitch"]
        for x, column in zip(form["columns"], columns, strict=False):
            say(x, y, column, "rs")
        ImageDraw.Draw(picture).line((form["left"], y + 4, SIDE - 4, y + 4), black)
        for item in items:
            y += form["pitch"]
            say(form["left"], y, item, "ls")
            for x, column in zip(form["columns"], columns, strict=False):
                if (value := cells.get((item, column))) is not None:
                    things.append(Thing(f"{item} {column}", value, say(x, y, value, "rs", item, column).box))
        return y

    parts = [write_table, write_fields] if form["table_first"] else [write_fields, write_table]
    parts[1](parts[0](int(rng.integers(0, 6))) + form["gap"])
    return Scene(np.asarray(picture), tuple(things), tuple(marks))


WORLD = World(
    keys=(*FIELDS, *(f"{item} {column}" for item in ITEMS for column in COLUMNS)),
    values=DIGITS,
    choose=choose,
    draw=draw,
    of_value="what is the {key} ?",
    of_key="which field says {value} ?",
)
