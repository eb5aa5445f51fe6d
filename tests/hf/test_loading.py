"""Loading of checkpoints with their processors, and the errors before anything is loaded."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from corelens import HookedMLLM
from corelens.hf import loading
from tests.helpers import processors, tiny
from tests.helpers.pictures import random_picture


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return random_picture()


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
    ("choice", "message"),
    [
        ({"dtype": "fp16"}, "dtype='fp16' is not known; take auto, bfloat16, float16 or float32"),
        ({"dtype": "int8"}, "dtype='int8' is not known"),
        ({"dtype": "Tensor"}, "dtype='Tensor' is not known"),
        ({"device_map": "cuda:99"}, "device_map='cuda:99' is no device of this machine; take auto or cpu"),
        ({"device_map": "gpu"}, "device_map='gpu' is no device of this machine"),
    ],
)
def test_dtypes_and_devices_are_checked_before_anything_is_loaded(
    choice: Any, message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loading, "AutoModelForImageTextToText", None)
    with pytest.raises(ValueError, match=message):
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
