"""How the processors of checkpoints are loaded, with torchvision and without, and that preparing leaves them alone."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig

from corelens.inputs import processor_probe
from corelens.inputs.prepare import prepare
from corelens.inputs.processor import load_processor
from tests.helpers import processors, tiny
from tests.helpers.architectures import ARCHITECTURES

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 112, 3), np.uint8))


def write(name: str, folder: Path) -> None:
    """A checkpoint's files for its processor, as Hugging Face writes them; without those of a video processor."""
    family, architecture = processors.FAMILIES[name], ARCHITECTURES[name]
    AutoConfig.for_model(architecture.model_type or name, **architecture.config).save_pretrained(folder)
    family.tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(family.chat)
    image_processor = {"image_processor_type": family.images.removesuffix("Pil"), **family.settings}
    parts = {part: {"feature_extractor_type": kind} for part, kind in family.parts.items()}
    settings = {"processor_class": family.processor, "image_processor": image_processor, **parts, **family.options}
    (folder / "processor_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("name", [name for name in processors.FAMILIES if name in ARCHITECTURES])
def test_pictures_need_torchvision_only_where_transformers_has_nothing_else(name: str, tmp_path: Path):
    write(name, tmp_path)
    if name == "smolvlm":
        processors.build(name)  # stands in for num2words
    if processors.FAMILIES[name].needs_torchvision and not processors.TORCHVISION:
        said = rf"the pictures of {name} need torchvision.*pip install 'corelens\[video\]'"
        with pytest.raises(ImportError, match=said):
            load_processor(str(tmp_path))
        return
    loaded, built = load_processor(str(tmp_path)), processors.build(name)
    text = [built.image_token]
    given = dict(text=text, images=[[picture()]], return_tensors="pt")
    assert torch.equal(loaded(**given)["input_ids"], built(**given)["input_ids"])


def test_preparing_changes_nothing_of_the_processor():
    processor = processors.build("internvl")
    processor.tokenizer.padding_side = "right"
    before, words = dict(vars(processor)), copy.copy(vars(processor.tokenizer))
    inputs = prepare(processor, tiny.build("internvl").config, [picture(), None], ["Which digit is red?", "a?"])
    assert inputs.tokens.padding[1, 0]
    assert vars(processor) == before
    assert vars(processor.tokenizer) == words


def test_each_size_is_measured_once(monkeypatch: pytest.MonkeyPatch):
    sizes: list[tuple[int, int]] = []
    draw = processor_probe.coordinate_image

    def drawn(*size: int) -> Any:
        sizes.append(size)
        return draw(*size)

    monkeypatch.setattr(processor_probe, "coordinate_image", drawn)
    images = [picture(), picture(), picture().resize((60, 50))]
    prepare(processors.build("llava"), tiny.build("llava").config, images, ["Which?"] * 3)
    assert sorted(sizes) == [(60, 50), (112, 96)]
