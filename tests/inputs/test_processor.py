"""Loading of processors with and without torchvision; preparing inputs leaves processors unchanged."""

import copy
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from corelens import HookedMLLM
from corelens.inputs.prepare import prepare
from corelens.inputs.processor import load_processor
from tests.helpers import processors, tiny
from tests.helpers.architectures import ARCHITECTURES
from tests.helpers.pictures import random_picture

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")


def write_checkpoint(name: str, folder: Path) -> None:
    """Write a checkpoint's files for its processor, as Hugging Face does; without those of a video processor."""
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
    write_checkpoint(name, tmp_path)
    if name == "smolvlm":
        processors.build(name)  # stands in for num2words
    if processors.FAMILIES[name].needs_torchvision and not processors.TORCHVISION:
        message = rf"the pictures of {name} need torchvision.*pip install 'corelens\[video\]'"
        with pytest.raises(ImportError, match=message):
            load_processor(str(tmp_path))
        return
    loaded, built = load_processor(str(tmp_path)), processors.build(name)
    inputs = dict(text=[built.image_token], images=[[random_picture()]], return_tensors="pt")
    assert torch.equal(loaded(**inputs)["input_ids"], built(**inputs)["input_ids"])


def test_preparing_changes_nothing_of_the_processor():
    processor = processors.build("internvl")
    processor.tokenizer.padding_side = "right"
    attributes, tokenizer_attributes = dict(vars(processor)), copy.copy(vars(processor.tokenizer))
    inputs = prepare(processor, tiny.build("internvl").config, [random_picture(), None], ["Which digit is red?", "a?"])
    assert inputs.tokens.padding[1, 0]
    assert vars(processor) == attributes
    assert vars(processor.tokenizer) == tokenizer_attributes


def test_pictures_of_cross_attention_are_no_tokens_and_their_patches_are_seen_by_hooks():
    model = HookedMLLM(tiny.build("mllama"), processors.build("mllama"))
    with pytest.raises(ValueError, match="mllama has no visual tokens: it sees pictures by cross-attention"):
        model.prepare(random_picture(), "Which digit is red?")
    assert model.prepare(None, "Which digit is red?").tokens.question.any()
    inputs = model.processor(text=["<|image|>a?"], images=[[random_picture()]], return_tensors="pt")
    _, cache = model.run_with_cache(inputs)
    n_patches = 2 * (1 + 2 * 2)  # two tiles, each with a class token
    n = inputs["input_ids"].shape[1]
    assert [cache["pattern", layer].shape[-1] for layer in range(4)] == [n, n_patches, n, n_patches]


def test_codes_are_visual_tokens_without_rectangles():
    model = HookedMLLM(tiny.build("chameleon"), processors.build("chameleon"))
    tokens = model.prepare(random_picture(), "Which digit is red?").tokens
    assert tokens.image.sum() == 16
    with pytest.raises(ValueError, match="the visual tokens of chameleon are codes"):
        tokens.in_box((0, 0, 9, 9))
