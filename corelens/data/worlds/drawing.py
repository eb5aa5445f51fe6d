"""Writing and drawing that say which pixels they touched."""

from collections.abc import Callable, Iterator
from functools import cache, partial

from PIL import Image, ImageDraw, ImageFont

from corelens.data.reading import Row, Samples
from corelens.data.sample import Sample
from corelens.tokens import Box

Colour = tuple[int, int, int]
INK: Colour = (25, 25, 30)


def drawn(name: str, n: int, seed: int, sample: Callable[[int, int], Sample]) -> Samples:
    """`n` samples of a world; sample i depends on `seed` and i alone."""
    if n < 1 or seed < 0:
        raise ValueError(f"n={n} and seed={seed}: a world needs at least one sample and a seed of 0 or more.")

    def rows() -> Iterator[Row]:
        for index in range(n):
            yield f"{name}-{seed}-{index}", partial(sample, seed, index)

    return Samples(f"{name}, seed {seed}", rows)


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """The typeface that Pillow ships."""
    found = ImageFont.load_default(size)
    assert isinstance(found, ImageFont.FreeTypeFont)  # Pillow without FreeType has no scalable one
    return found


def write(
    picture: Image.Image, place: tuple[float, float], text: str, size: int, colour: Colour = INK, anchor: str = "ls"
) -> Box:
    """Writes a line and returns the smallest box around its ink.

    The place is that of the baseline's left end, or of what another anchor of Pillow says.
    """
    mask = Image.new("L", picture.size)
    ImageDraw.Draw(mask).text(place, text, 255, font(size), anchor)
    return _apply(picture, mask, colour)


def shape(picture: Image.Image, corners: list[tuple[float, float]], colour: Colour) -> Box:
    """Fills a polygon with smooth edges and returns the smallest box around it."""
    scale = 4
    mask = Image.new("L", (picture.width * scale, picture.height * scale))
    ImageDraw.Draw(mask).polygon([(x * scale, y * scale) for x, y in corners], 255)
    return _apply(picture, mask.resize(picture.size, Image.Resampling.BOX), colour)


def _apply(picture: Image.Image, mask: Image.Image, colour: Colour) -> Box:
    picture.paste(colour, mask=mask)
    found = mask.getbbox()
    assert found is not None  # nothing that is drawn is empty or outside the picture
    return Box(*map(float, found))
