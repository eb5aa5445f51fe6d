"""Uploaded pictures and tolerances of the explorer's tests."""

import io

import numpy as np
from PIL import Image

CLOSE = {"rtol": 2e-3, "atol": 1e-5}
"""Tolerance of numbers that are sent with four digits."""


def png(width: int = 128, height: int = 128) -> bytes:
    """A PNG file of noise."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()
