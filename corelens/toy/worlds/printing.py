"""Printing on the toy's pages and charts, in fonts and layouts of one split."""

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
from corelens.toy.worlds.world import Split, clipped

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
