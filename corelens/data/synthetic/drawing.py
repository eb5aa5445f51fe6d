"""Fonts, photographs and drawing functions that return the box of the pixels they changed."""

import math
from collections.abc import Callable, Iterator
from functools import cache, partial
from numbers import Integral
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from corelens.data.readers.base import Row, Samples
from corelens.data.sample import Sample
from corelens.errors import optional_import
from corelens.tokens import Box

Colour = tuple[int, int, int]
INK: Colour = (25, 25, 30)


def drawn_samples(name: str, n: int, seed: int, sample: Callable[[int, int], Sample]) -> Samples:
    """`n` samples of a world; sample i depends on `seed` and i alone."""
    check_draw(n, seed)
    return Samples(f"{name}, seed {seed}", partial(_rows, name, n, seed, sample))


def _rows(name: str, n: int, seed: int, sample: Callable[[int, int], Sample]) -> Iterator[Row]:
    for index in range(n):
        yield f"{name}-{seed}-{index}", partial(sample, seed, index)


def check_draw(n: Any, seed: Any) -> None:
    """Raise a ValueError if no world can draw `n` samples from a seed."""
    if not all(isinstance(number, Integral) for number in (n, seed)) or n < 1 or seed < 0:
        raise ValueError(f"n={n!r} and seed={seed!r}: a world draws one sample or more, from a seed of 0 or more.")


@cache
def default_font(size: float | int) -> ImageFont.FreeTypeFont:
    """The typeface that Pillow ships."""
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow without FreeType has no scalable one
    return font


@cache
def sample_photographs() -> list[UInt8[np.ndarray, "row column 3"]]:
    """The two photographs that scikit-learn ships."""
    with optional_import("app"):
        from sklearn.datasets import load_sample_images

    return [np.ascontiguousarray(photograph) for photograph in load_sample_images().images]


def write(
    picture: Image.Image,
    place: tuple[float | int, float | int],
    text: str,
    size: int,
    colour: Colour = INK,
    anchor: str = "ls",
) -> Box:
    """Write a line of text and return the smallest box around its ink.

    The place is the left end of the baseline, or the point that another anchor of Pillow names.
    """
    bounds = ImageDraw.Draw(picture).textbbox(place, text, default_font(size), anchor)
    # Only around the text: masks of whole pages are slow. Two more pixels, since bounds exclude smoothed edges.
    left, top, right, bottom = (math.floor(edge) + (-2, 2)[side > 1] for side, edge in enumerate(bounds))
    mask = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(mask).text((place[0] - left, place[1] - top), text, 255, default_font(size), anchor)
    return _apply(picture, mask, colour, (left, top))


def draw_shape(picture: Image.Image, corners: list[tuple[float | int, float | int]], colour: Colour) -> Box:
    """Fill a polygon, with smooth edges and a white outline, and return the smallest box around both."""
    scale, margin = 4, 4
    left, top = (math.floor(min(edge)) - margin for edge in zip(*corners, strict=True))
    right, bottom = (math.ceil(max(edge)) + margin for edge in zip(*corners, strict=True))
    mask = Image.new("L", ((right - left) * scale, (bottom - top) * scale))
    ImageDraw.Draw(mask).polygon([((x - left) * scale, (y - top) * scale) for x, y in corners], 255)
    inside = mask.resize((right - left, bottom - top), Image.Resampling.BOX)
    box = _apply(picture, inside.filter(ImageFilter.MaxFilter(5)), (255, 255, 255), (left, top))
    _apply(picture, inside, colour, (left, top))
    return box


def _apply(picture: Image.Image, mask: Image.Image, colour: Colour, corner: tuple[int, int] = (0, 0)) -> Box:
    picture.paste(colour, (*corner, corner[0] + mask.width, corner[1] + mask.height), mask)
    bounds = mask.getbbox()
    assert bounds is not None  # drawn texts and shapes are neither empty nor outside the picture
    left, top, right, bottom = bounds
    return Box(corner[0] + left, corner[1] + top, corner[0] + right, corner[1] + bottom)
