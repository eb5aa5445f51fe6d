"""Comparisons of pictures and boxes."""

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
