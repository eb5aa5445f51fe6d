"""Invoices with questions about their fields and their table."""

from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image, ImageDraw

from corelens.data.readers.base import Samples
from corelens.data.sample import Evidence, Sample
from corelens.data.synthetic.drawing import Colour, drawn_samples, write
from corelens.tokens import Box

SIZE = (640, 800)
MARGIN = 48
COMPANIES = ("Alder & Finch", "Brook Supplies", "Cobalt Works", "Dune Trading", "Elm Street Tools", "Fjord Marine")
ITEMS = (
    "Anchor",
    "Bolt",
    "Cable",
    "Drill",
    "Filter",
    "Gasket",
    "Hinge",
    "Ladder",
    "Magnet",
    "Nozzle",
    "Pulley",
    "Valve",
)
MONTHS = ("March", "May", "June", "August", "October")
COLUMNS = ("Quantity", "Unit price", "Stock code")
NAMES = ("Ada Brandt", "Ben Okafor", "Chen Li", "Dora Novak", "Emil Sato", "Fay Moreau", "Gus Petrov", "Hana Kim")
COUNTRIES = ("Brazil", "Canada", "Denmark", "Ghana", "Japan", "Kenya", "Norway", "Peru", "Spain", "Vietnam")
ACCENTS: tuple[Colour, ...] = ((30, 70, 140), (140, 45, 45), (35, 105, 65), (95, 60, 130))


@dataclass(frozen=True)
class Document:
    """Contents of a page. No value occurs twice on it."""

    company: str
    accent: Colour
    fields: dict[str, str]
    items: dict[str, dict[str, str]]
    """By name of the item, then of the column."""


def documents(n: int, seed: int = 0) -> Samples:
    """Draw `n` pages with fields, a table and a question about one value, which is the evidence."""
    return drawn_samples("documents", n, seed, _sample)


def _sample(seed: int, index: int) -> Sample:
    rng = np.random.default_rng([seed, index])
    document = draw_document(rng)
    field = str(rng.choice(list(document.fields)))
    task, question, answer = "field", f"What is the {field.lower()}?", document.fields.get(field, "")
    if rng.random() < 0.5:
        item, column = str(rng.choice(list(document.items))), str(rng.choice(COLUMNS))
        field = f"{item}, {column}"
        task, question, answer = (
            "table",
            f"What is the {column.lower()} of the {item.lower()}?",
            document.items[item][column],
        )
    return Sample(
        f"documents-{seed}-{index}",
        question,
        answer,
        (partial(_picture, seed, index),),
        (Evidence(draw_page(document)[1][field]),),
        scoring="anls",
        about={"task": task, "field": field},
    )


def _picture(seed: int, index: int) -> Image.Image:
    return draw_page(draw_document(np.random.default_rng([seed, index])))[0]


def draw_document(rng: np.random.Generator) -> Document:
    """Draw the contents of a random page."""
    used: set[int] = set()

    def number(low: int, high: int) -> int:
        while (value := int(rng.integers(low, high))) in used:
            pass
        used.add(value)
        return value

    def date(year: int) -> str:
        return f"{number(10, 29)} {rng.choice(MONTHS)} {year}"

    year = int(rng.integers(2015, 2026))

    fields = {
        "Invoice number": str(number(10_000, 99_999)),
        "Customer number": str(number(100_000, 999_999)),
        "Order date": date(year),
        "Due date": date(year + 1),
        "Contact": str(rng.choice(NAMES)),
        "Country": str(rng.choice(COUNTRIES)),
    }
    items = {}
    for name in rng.choice(ITEMS, int(rng.integers(5, 9)), replace=False):
        price = f"{number(400, 999)}.{rng.integers(10, 99)}"
        items[str(name)] = {
            "Quantity": str(number(30, 400)),
            "Unit price": price,
            "Stock code": str(number(1000, 9999)),
        }
    return Document(str(rng.choice(COMPANIES)), ACCENTS[rng.integers(len(ACCENTS))], fields, items)


def draw_page(document: Document) -> tuple[Image.Image, dict[str, Box]]:
    """Draw a page and return it with the box of every value, by the name of its field or by its item and column."""
    page = Image.new("RGB", SIZE, (252, 251, 247))
    draw = ImageDraw.Draw(page)
    width = SIZE[0]
    draw.rectangle((0, 0, width, 92), document.accent)
    write(page, (MARGIN, 60), document.company, 34, (255, 255, 255))
    write(page, (width - MARGIN, 58), "INVOICE", 20, (255, 255, 255), "rs")
    boxes: dict[str, Box] = {}
    for row, (name, value) in enumerate(document.fields.items()):
        y = 150 + 34 * row
        write(page, (MARGIN, y), name, 18, (110, 110, 115))
        boxes[name] = write(page, (260, y), value, 18)
    top, step, columns = 400, 40, (300, 440, 592)
    draw.rectangle((MARGIN, top - 28, width - MARGIN, top + 12), document.accent)
    write(page, (MARGIN + 12, top), "Item", 18, (255, 255, 255))
    for x, column in zip(columns, COLUMNS, strict=True):
        write(page, (x - 12, top), column, 18, (255, 255, 255), "rs")
    for row, (name, values) in enumerate(document.items.items(), 1):
        y = top + step * row
        write(page, (MARGIN + 12, y), name, 18)
        for x, (column, value) in zip(columns, values.items(), strict=True):
            boxes[f"{name}, {column}"] = write(page, (x - 12, y), value, 18, anchor="rs")
        draw.line((MARGIN, y + 12, width - MARGIN, y + 12), (205, 205, 205))
    return page, boxes
