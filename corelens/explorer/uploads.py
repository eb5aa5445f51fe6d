"""Pictures that somebody drops into the explorer: bytes of unknown origin."""

import io
import warnings

from PIL import Image, UnidentifiedImageError

from corelens.inputs.media import load_picture

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""What is decoded: formats of browsers, whose decoders in Pillow run no other program."""

MOST_BYTES = 6 * 2**20
"""Of a file. Jupyter refuses messages of more than ten million bytes, and base64 needs four for three."""

MOST_PIXELS = 24 * 10**6


def decoded(data: bytes) -> Image.Image:
    """The picture in a file, in RGB, upright; of several, the first.

    Raises:
        ValueError: If it is too large, in bytes or in pixels, is damaged, or is no picture.
    """
    if len(data) > MOST_BYTES:
        raise ValueError(f"the file has {len(data) / 2**20:.1f} MiB; at most {MOST_BYTES >> 20} are read.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
            # Nothing is decoded yet: formats tell their size first.
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as cause:
        raise ValueError(f"the file is no picture that can be read ({', '.join(FORMATS)}).") from cause
    if picture.width * picture.height > MOST_PIXELS:
        raise ValueError(
            f"the picture has {picture.width} x {picture.height} pixels; at most {MOST_PIXELS // 10**6} million are "
            f"decoded. Shrink it."
        )
    return load_picture(picture)
