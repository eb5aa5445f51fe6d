"""Uploaded pictures: formats, limits and damaged files."""

import io

import pytest
from PIL import Image

from corelens.explorer import uploads
from corelens.explorer.uploads import decode_picture
from tests.helpers.explorer import png


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_pictures_of_browsers_are_decode_picture(kind: str):
    file = io.BytesIO()
    Image.new("RGB", (8, 4), "red").save(file, kind)
    picture = decode_picture(file.getvalue())
    assert (picture.size, picture.mode) == ((8, 4), "RGB")


def test_bad_files_are_errors(monkeypatch: pytest.MonkeyPatch):
    tiff, huge = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (8, 4)).save(tiff, "TIFF")
    Image.new("1", (6000, 5000)).save(huge, "PNG")
    for data in (b"", b"text", tiff.getvalue(), b"\x80\x04\x95pickle", b"%!PS-Adobe-3.0 EPSF-3.0\n"):
        with pytest.raises(ValueError, match="no picture that can be read"):
            uploads.decode_picture(data)
    with pytest.raises(ValueError, match="6000 x 5000 pixels; at most 24 million"):
        uploads.decode_picture(huge.getvalue())
    with pytest.raises(ValueError, match="damaged"):
        uploads.decode_picture(png()[:2000])
    monkeypatch.setattr(uploads, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match="at most"):
        uploads.decode_picture(png())
