"""`corelens models`: what is said of a model before it is loaded."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from typer.testing import CliRunner

from corelens import HookedMLLM
from corelens.cli import app
from tests.helpers import tiny


def models(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["models", *arguments])


def test_the_toy_is_what_its_configuration_says(toy_model: Any):
    run = models("corelens/toy", "--json")
    assert run.exit_code == 0, run.output
    said = json.loads(run.output)
    assert said["model_type"] == "qwen3_vl"
    assert said["n_layers"] == toy_model.cfg.n_layers
    assert said["n_heads"] == len(toy_model.heads) == 96
    assert said["heads"] == {str(layer): toy_model.cfg.n_heads for layer in range(toy_model.cfg.n_layers)}
    assert len(said["vision"]) == len(toy_model.vision.blocks)
    assert said["n_parameters"] == sum(p.numel() for p in toy_model.hf_model.parameters())
    assert not any(said[name] for name in ("headless", "cross_attention", "gated", "no_boxes", "no_video_boxes"))
    text = " ".join(models("corelens/toy").output.split())
    assert "heads 96: 16 per layer in 0-5" in text
    assert "picture geometry yes video geometry yes" in text


def test_layers_without_heads_are_named(tmp_path: Path):
    hf_model = tiny.build("qwen3_5")
    hf_model.config.save_pretrained(tmp_path)
    said = json.loads(models(str(tmp_path), "--json").output)
    sites = HookedMLLM(hf_model).hf_layers
    assert list(said["headless"]) == [str(site.layer) for site in sites if "attn" in site.missing]
    assert len(said["headless"]) == 2
    assert all("Qwen3_5GatedDeltaNet" in parts for parts in said["headless"].values())
    assert said["gated"] == [site.layer for site in sites if "attn" in site.attentions]
    assert "Qwen3_5GatedDeltaNet" in models(str(tmp_path)).output


@pytest.mark.parametrize("mistake", ["no folder", "no pictures", "refused", "offline"])
def test_mistakes_are_one_sentence(mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # What is not cached cannot be found either way; without the network it is not asked for.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = tiny.build("git").config if mistake == "refused" else LlamaConfig()
    config.save_pretrained(tmp_path)
    name, reason = {
        "no folder": (str(tmp_path / "nowhere"), "there is no model folder"),
        "no pictures": (str(tmp_path), "'llama' is not an image-text-to-text model"),
        "refused": (str(tmp_path), "computes attention on its own"),
        "offline": ("corelens-tests/nowhere", "couldn't connect"),
    }[mistake]
    run = models(name)
    assert run.exit_code == 2
    assert isinstance(run.exception, SystemExit)
    # Without the frame and the line breaks, which depend on the terminal.
    assert reason.replace(" ", "") in "".join(run.output.replace("│", "").split())


def test_the_list_has_every_model_type():
    said = {one["model_type"]: one for one in json.loads(models("--json").output)}
    assert set(said) == {*MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, "phi4_multimodal"}
    refused = {"git", "blip", "inkling2_loop"} & set(said)  # the last one since transformers 5.24
    assert {name for name, one in said.items() if one["attention"] == "refused"} == refused
    assert {name for name, one in said.items() if one["attention"] == "not tested"} == set()
    assert said["qwen3_vl"] == {
        "model_type": "qwen3_vl", "attention": "8 of 8", "heads": "", "picture": "yes", "video": "yes",
        "tower": "yes", "caveat": "",
    }  # fmt: skip
    assert "known fault" in said["minimax_m3_vl"]["caveat"]
    assert "no generation" in said["pi0"]["caveat"]
    assert said["aria"]["picture"] == "queries"
    assert said["qwen3_5"]["heads"] == "hybrid, gated"
    rows = models().output.splitlines()
    for name in said:
        assert any(row.split()[:1] == [name] for row in rows), name
