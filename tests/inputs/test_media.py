"""Pictures in files and in memory, and the errors about those that cannot be loaded."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from corelens import HookedMLLM
from corelens.inputs.media import ORIENTATION, QUARTER_TURNS, load_picture, upright_box
from tests.helpers import processors, tiny
from tests.helpers.pictures import random_picture


def in_file(picture: Image.Image, kind: str, **settings: object) -> Image.Image:
    """The picture as it is read from a file of this kind."""
    file = BytesIO()
    picture.save(file, kind, **settings)
    return Image.open(file)


@pytest.fixture(scope="module")
def model() -> HookedMLLM:
    return HookedMLLM(tiny.build("qwen3_vl"), processors.build("qwen3_vl"))


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return random_picture()


def test_a_path_and_its_picture_are_the_same(model: HookedMLLM, image: Image.Image, tmp_path: Path):
    image.save(tmp_path / "a.png")
    expected = model.prepare(image, "Which?")
    for path in (tmp_path / "a.png", str(tmp_path / "a.png")):
        assert torch.equal(model.prepare(path, "Which?")["pixel_values"], expected["pixel_values"])


RAMP = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
"""All greys of 16 bits, from black to white."""


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "in memory"])
def test_greys_of_sixteen_bits_keep_their_levels(kind: str):
    picture = Image.fromarray(RAMP) if kind == "in memory" else in_file(Image.fromarray(RAMP), kind)
    assert np.abs(np.asarray(load_picture(picture))[..., 1] - RAMP / 257).max() <= 1


@pytest.mark.parametrize("numbers", [RAMP.astype(np.int32), (RAMP / 65535).astype(np.float32)])
def test_numbers_without_a_white_are_no_picture(numbers: np.ndarray):
    with pytest.raises(ValueError, match=r"do not say which of them is white: scale them to 0 to 255, and convert"):
        load_picture(Image.fromarray(numbers))


def drawing(ink: int) -> Image.Image:
    """A square of one grey on a transparent ground that has the same grey underneath."""
    alpha = Image.new("L", (64, 64))
    alpha.paste(255, (20, 20, 40, 40))
    return Image.merge("RGBA", [*[Image.new("L", alpha.size, ink)] * 3, alpha])


def keyed(mode: str, ground: int) -> Image.Image:
    """A black square on a ground of one number, which the file says is transparent."""
    picture = Image.new(mode, (64, 64), (0, 0, ground) if mode == "RGB" else ground)
    picture.paste(0 if mode != "RGB" else (0, 0, 0), (20, 20, 40, 40))
    return in_file(picture, "PNG", transparency=(0, 0, ground) if mode == "RGB" else ground)


TRANSPARENT = {
    "RGBA": (drawing(0), 0, 255),
    "RGBA, white ink": (drawing(255), 255, 0),
    "RGBA in a file": (in_file(drawing(0), "PNG"), 0, 255),
    "RGBa": (drawing(0).convert("RGBa"), 0, 255),
    "LA": (drawing(0).convert("LA"), 0, 255),
    "palette with alpha": (in_file(drawing(0).quantize(8), "PNG"), 0, 255),
    "RGB with a transparent colour": (keyed("RGB", 1), 0, 255),
    "L with a transparent grey": (keyed("L", 1), 0, 255),
    "16 bits with a transparent grey": (keyed("I;16", 1), 0, 255),
    "nothing drawn": (Image.new("RGBA", (64, 64)), 0, 0),
}
"""Transparent pictures, and the colours of their square and of the ground that a person sees."""


@pytest.mark.parametrize("name", TRANSPARENT)
def test_transparent_pictures_are_on_white_or_on_black_where_all_that_is_drawn_is_white(name: str):
    picture, ink, ground = TRANSPARENT[name]
    seen = np.asarray(load_picture(picture))
    assert seen[30, 30].tolist() == [ink] * 3
    assert seen[0, 0].tolist() == [ground] * 3


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_other_modes_have_the_colours_of_their_conversion(mode: str):
    drawn = Image.new("RGB", (64, 64), "white")
    drawn.paste("black", (20, 20, 40, 40))
    seen = np.asarray(load_picture(drawn.convert(mode)))
    assert np.abs(seen[[30, 0], [30, 0]].astype(int) - [[0] * 3, [255] * 3]).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_turn_with_their_picture(orientation: int):
    stored = np.zeros((200, 300, 3), np.uint8)
    stored[30:80, 20:60] = 255
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    for kind in ("PNG", "TIFF"):
        seen = load_picture(in_file(Image.fromarray(stored), kind, exif=exif))
        assert seen.size == ((200, 300) if orientation in QUARTER_TURNS else (300, 200))
        assert seen.getbbox() == upright_box((20, 30, 60, 80), (300, 200), orientation)


def test_damaged_missing_and_foreign_files(model: HookedMLLM, image: Image.Image, tmp_path: Path):
    image.save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"half.png' is damaged and cannot be decoded"):
        model.prepare(tmp_path / "half.png", "Which?")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"text.png' is not a picture that Pillow can read"):
        model.prepare(tmp_path / "text.png", "Which?")
    with pytest.raises(FileNotFoundError, match=r"no picture file .*none.png"):
        model.prepare(tmp_path / "none.png", "Which?")
    with pytest.raises(ValueError, match=r"https://x\.y/z\.png is an address, and nothing is fetched"):
        model.prepare("https://x.y/z.png", "Which?")
    with pytest.raises(TypeError, match=r"a PIL image or a path, not ndarray\. PIL\.Image\.fromarray makes one"):
        model.prepare([[np.zeros((4, 4, 3))]], ["Which?"])


@pytest.mark.parametrize("n", [6, 12])
def test_bombs_are_not_decoded(model: HookedMLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int):
    Image.new("RGB", (n, 10)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(ValueError, match=r"bomb.png'? is too large to decode safely.*Pillow's limit is 50 pixels"):
        model.prepare(tmp_path / "bomb.png", "Which?")
