"""What a user gets wrong about pictures, questions and checkpoints."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from corelens import HookedMLLM
from corelens.hf import loading
from corelens.inputs.chats import build_chats
from corelens.inputs.prepare import prepare
from tests.helpers import processors, tiny


@pytest.fixture(scope="module")
def model() -> Any:
    return HookedMLLM(tiny.build("qwen3_vl"), processors.build("qwen3_vl"))


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 112, 3), np.uint8))


def test_a_path_and_its_picture_are_the_same(model: Any, image: Image.Image, tmp_path: Path):
    image.save(tmp_path / "a.png")
    expected = model.prepare(image, "Which?")
    for path in (tmp_path / "a.png", str(tmp_path / "a.png")):
        assert torch.equal(model.prepare(path, "Which?")["pixel_values"], expected["pixel_values"])


def test_pictures_stand_upright_and_lose_transparency(model: Any, image: Image.Image, tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert model.prepare(tmp_path / "turned.jpg", "Which?").tokens.sizes == (((96, 112),),)
    assert model.prepare(image.convert("RGBA"), "Which?")["pixel_values"].isfinite().all()


def test_damaged_missing_and_foreign_files(model: Any, image: Image.Image, tmp_path: Path):
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


@pytest.mark.parametrize(("asked", "kind"), [(None, "NoneType"), (Image.new("RGB", (4, 4)), "Image")])
def test_what_is_no_question_is_told_its_place(asked: Any, kind: str):
    with pytest.raises(TypeError, match=rf"not {kind}; the pictures come before it, as in prepare\(image, question\)"):
        build_chats(question, "Which?", None, None)


@pytest.mark.parametrize("n", [6, 12])
def test_bombs_are_not_decoded(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int):
    Image.new("RGB", (n, 10)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(ValueError, match=r"bomb.png'? is too large to decode safely.*Pillow's limit is 50 pixels"):
        model.prepare(tmp_path / "bomb.png", "Which?")


@pytest.mark.parametrize(
    ("images", "question", "message"),
    [
        (None, "", "the question is empty"),
        (None, "  \n", "the question is empty"),
        (None, [], "there is no question"),
        (None, ["Which?", ""], "the question is empty"),
        ([None], ["a", "b"], "2 questions came with pictures for 1"),
        ("image", ["a", "b"], "2 questions came with one picture"),
        (
            None,
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}],
            "more pictures than the 0",
        ),
        (["image"], [{"role": "user", "content": "a"}], "1 of 1 pictures have no place in the chat"),
        (None, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "must end with the question"),
        (None, [[]], "the chat is empty"),
        (None, [{"role": "user", "content": [{"type": "audio"}]}], "type 'audio' cannot be prepared"),
        (None, "is <|image_pad|> red?", "which stands for a picture"),
    ],
)
def test_questions_and_pictures_that_do_not_fit(
    model: Any, image: Image.Image, images: Any, question: Any, message: str
):
    images = image if images == "image" else [image] if images == ["image"] else images
    with pytest.raises(ValueError, match=message):
        model.prepare(images, question)


def test_without_processor_or_template(image: Image.Image):
    hf_model = tiny.build("qwen3_vl")
    with pytest.raises(ValueError, match="wrapped without a processor"):
        HookedMLLM(hf_model).prepare(image, "Which?")
    bare = processors.build("qwen3_vl")
    bare.chat_template = None
    with pytest.raises(ValueError, match=r"has no chat template.*processor\.chat_template = "):
        HookedMLLM(hf_model, bare).prepare(image, "Which?")


def test_a_family_without_known_geometry_still_prepares_and_says_so(image: Image.Image):
    config = SimpleNamespace(model_type="some_other_model", image_token_id=tiny.IMAGE)
    inputs = prepare(processors.build("llava"), config, image, "Which?")
    assert inputs.tokens.image.sum() == 16
    with pytest.raises(ValueError, match="how the visual tokens of some_other_model tile a picture is not known"):
        inputs.tokens.in_box((0, 0, 9, 9))


def test_a_processor_that_does_not_belong_to_the_model(image: Image.Image):
    processor = processors.build("llava")
    processor.patch_size = 28
    processor.num_additional_image_tokens = 3
    with pytest.raises(ValueError, match="became 6 visual tokens, but its grid is 2 x 2"):
        prepare(processor, tiny.build("llava").config, image, "Which?")


def test_inputs_move_with_their_map(model: Any, image: Image.Image):
    inputs = model.prepare(image, "Which?").to("meta")
    assert inputs["input_ids"].device.type == inputs.tokens.role.device.type == "meta"


# --- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["qwen3_vl", "qwen2_5_vl", "llava"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    tiny.build(request.param).save_pretrained(folder)
    processors.build(request.param).save_pretrained(folder)
    return folder


def test_checkpoints_load_with_their_processor(checkpoint: Path, image: Image.Image):
    """Also those that were saved without the video processor of their family, which needs torchvision."""
    model = HookedMLLM.from_pretrained(str(checkpoint))
    family = model.hf_model.config.model_type
    wrapped = HookedMLLM(tiny.build(family), processors.build(family))
    inputs = model.prepare(image, "Which digit is red?")
    expected = wrapped.prepare(image, "Which digit is red?")
    assert torch.equal(inputs["input_ids"], expected["input_ids"])
    # Where torchvision is installed, it resizes, and rounds otherwise than Pillow.
    torch.testing.assert_close(inputs["pixel_values"], expected["pixel_values"], atol=0.1, rtol=0)
    assert torch.equal(model(inputs), wrapped(inputs))
    assert not model.hf_model.training
    half = HookedMLLM.from_pretrained(str(checkpoint), dtype="bfloat16")
    assert half.hf_model.dtype == torch.bfloat16
    assert half(half.prepare(image, "Which digit is red?")).isfinite().all()


@pytest.mark.parametrize("name", ["./nowhere", "nowhere"])
def test_missing_folders(name: str, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=rf"no model folder '{name}'\. Models of the Hub are called owner/name"):
        HookedMLLM.from_pretrained(name)
    with pytest.raises(FileNotFoundError, match=r"holds no model: it has no config\.json"):
        HookedMLLM.from_pretrained(str(tmp_path))


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"dtype": "fp16"}, "dtype='fp16' is not known; take auto, bfloat16, float16 or float32"),
        ({"dtype": "int8"}, "dtype='int8' is not known"),
        ({"dtype": "Tensor"}, "dtype='Tensor' is not known"),
        ({"device_map": "cuda:99"}, "device_map='cuda:99' is no device of this machine; take auto or cpu"),
        ({"device_map": "gpu"}, "device_map='gpu' is no device of this machine"),
    ],
)
def test_dtypes_and_devices_are_checked_before_anything_is_loaded(
    choice: Any, said: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loading, "AutoModelForImageTextToText", None)
    with pytest.raises(ValueError, match=said):
        HookedMLLM.from_pretrained("corelens/toy", **choice)


def test_remote_code_is_refused_by_name(tmp_path: Path):
    config = {"model_type": "mystery", "auto_map": {"AutoConfig": "code.C", "AutoModelForImageTextToText": "code.M"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text("raise SystemExit('remote code ran')")
    with pytest.raises(ValueError, match=r"brings its own Python code.*trust_remote_code=True"):
        HookedMLLM.from_pretrained(str(tmp_path))


def test_pickled_weights_are_refused(tmp_path: Path):
    hf_model = tiny.build("llava")
    hf_model.config.save_pretrained(tmp_path)
    torch.save(hf_model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        HookedMLLM.from_pretrained(str(tmp_path))
