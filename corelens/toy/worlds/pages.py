"""Printed pages: fields with their values, and a small table."""

import numpy as np
from PIL import Image, ImageDraw

from corelens.toy.worlds.printing import Press, layout
from corelens.toy.worlds.world import DIGITS, SIDE, Mark, Scene, Split, Thing, World

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
