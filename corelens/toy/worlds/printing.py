"""Printing on the toy's pages and charts, in fonts and layouts of one split."""

from collections.abc import Sequence
from functools import cache
from importlib.metadata import entry_points
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
)
"""What pages and charts of the train split are printed in; the test split has the one font that Pillow ships."""


@cache
def font(split: Split, number: int, size: int) -> ImageFont.FreeTypeFont:
    """A font of a split.

    Raises:
        ImportError: If a training font is not installed.
    """
    if split == "test":
        found = ImageFont.load_default(size)
        assert isinstance(found, ImageFont.FreeTypeFont)  # Pillow without FreeType has no scalable one
        return found
    name = TRAIN_FONTS[number]
    if name not in (paths := _installed()):
        raise ImportError(
            f"the font {name} is not installed: pages and charts to train on need pip install 'corelens[train]'"
        )
    return ImageFont.truetype(paths[name], size)


@cache
def _installed() -> dict[str, str]:
    """Path of every font that a package brings, by its name."""
    groups = (entry_points(group=group) for group in ("fonts_otf", "fonts_ttf"))
    return {name: path for group in groups for entry in group for name, path in entry.load().items()}


class Press:
    """Writes words on a picture in one font, and says where they stand."""

    def __init__(self, rng: np.random.Generator, picture: Image.Image, split: Split, sizes: tuple[int, int]) -> None:
        number, size = int(rng.integers(len(TRAIN_FONTS))), int(rng.integers(sizes[0], sizes[1] + 1))
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
