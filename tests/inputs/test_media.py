"""Pictures in files and in memory, and the errors about those that cannot be loaded."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from corelens import HookedMLLM
from tests.helpers import processors, tiny
from tests.helpers.pictures import random_picture


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


def test_pictures_stand_upright_and_lose_transparency(model: HookedMLLM, image: Image.Image, tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert model.prepare(tmp_path / "turned.jpg", "Which?").tokens.sizes == (((96, 112),),)
    assert model.prepare(image.convert("RGBA"), "Which?")["pixel_values"].isfinite().all()


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
