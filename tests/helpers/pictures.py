"""Pictures for tests."""

import numpy as np
from PIL import Image


def random_picture(size: tuple[int, int] = (112, 96), seed: int = 0) -> Image.Image:
    """A picture of this width and height whose pixels are random."""
    width, height = size
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))
