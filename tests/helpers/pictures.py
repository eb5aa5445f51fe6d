"""Pictures for tests, and comparisons of pictures and boxes."""

import numpy as np
from PIL import Image, ImageChops

from corelens.tokens import Box


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB"))


def changed(before: Image.Image, after: Image.Image) -> Box:
    """The smallest box around all pixels that differ."""
    box = ImageChops.difference(before.convert("RGB"), after.convert("RGB")).getbbox()
    assert box is not None
    return Box(*box)


def around(*boxes: Box) -> Box:
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return Box(min(lefts), min(tops), max(rights), max(bottoms))


def random_picture(size: tuple[int, int] = (112, 96), seed: int = 0) -> Image.Image:
    """A picture of this width and height whose pixels are random."""
    width, height = size
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))
