"""Pictures uploaded into the explorer: bytes of unknown origin."""

import io
import warnings

from PIL import Image, UnidentifiedImageError

from corelens.inputs.media import load_picture

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""Formats that are decoded: those of browsers, whose decoders in Pillow run no other program."""

MAX_BYTES = 6 * 2**20
"""Most bytes of a file. Jupyter drops messages of more than ten million bytes, and base64 needs four for three."""

MAX_PIXELS = 24 * 10**6


def decode_picture(data: bytes) -> Image.Image:
    """Decode the picture in a file, in RGB and upright; of several, the first.

    Raises:
        ValueError: If it is too large, in bytes or in pixels, is damaged, or is no picture.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"the file has {len(data) / 2**20:.1f} MiB; at most {MAX_BYTES >> 20} are read.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
            # Nothing is decoded yet: the header gives the size.
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as cause:
        raise ValueError(f"the file is no picture that can be read ({', '.join(FORMATS)}).") from cause
    if picture.width * picture.height > MAX_PIXELS:
        raise ValueError(
            f"the picture has {picture.width} x {picture.height} pixels; at most {MAX_PIXELS // 10**6} million are "
            f"decoded. Shrink it."
        )
    return load_picture(picture)
