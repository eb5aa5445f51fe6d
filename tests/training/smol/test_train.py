"""A training of a few steps with a tiny language model, from the first batch to the model that ships."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

import training.smol.build
from corelens.hf import smol as checkpoint
from corelens.model import HookedMLLM
from corelens.shipped import questions_for
from tests.helpers.tiny_language import load_tiny_language
from training.run import Run
from training.smol import chats, export, language, tower, train


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (checkpoint, training.smol.build):
        monkeypatch.setattr(module, "load_language", load_tiny_language)
    monkeypatch.setattr(tower, "PICTURES", {"emoji": 1, "bars": 1})
    monkeypatch.setattr(tower, "LATER_PICTURES", {"emoji": 1})
    monkeypatch.setattr(chats, "TURNS", 2)


def test_a_run_ends_with_a_checkpoint_that_answers_as_the_trained_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model, processor = training.smol.build.model_and_processor(0)
    model.requires_grad_(False)
    run = Run(tmp_path)
    before = model.model.text_model.layers[0].self_attn.q_proj.weight.clone()
    train.train_tower(run, model, 0, 2)
    monkeypatch.setattr(tower, "align_connector", partial(tower.align_connector, n_batches=1))
    train.train_connector(run, model, processor.tokenizer, 0, 2)
    tower_before = {name: value.clone() for name, value in model.model.vision_model.state_dict().items()}
    updates = train.train_language(run, model, processor.tokenizer, 0, 3)
    assert torch.equal(model.model.text_model.layers[0].self_attn.q_proj.frozen[0].weight, before.bfloat16())
    export.export(run, model, updates, n=2)
    record = json.loads((tmp_path / "smol" / "record.json").read_text())
    assert record["stages"]["tower"]["steps"] == 2
    assert record["stages"]["connector"]["steps"] == 2
    assert record["stages"]["language"]["steps"] == 3
    assert questions_for(str(tmp_path / "joined")).tasks == ("digit", "colour")
    assert {"emoji", "pages", "lists"} <= record["accuracy on unseen samples"].keys()
    assert record["perplexity of a page"]["before"] > 1
    joined = HookedMLLM.from_pretrained(str(tmp_path / "joined"))
    batch = chats.picture_chats(processor.tokenizer, np.random.default_rng(5))
    with torch.no_grad():
        trained, _ = language.answer_loss(model, batch)
        merged, _ = language.answer_loss(joined.hf_model, batch)
    # Float16 of what ships, and bfloat16 of the frozen weights while training.
    torch.testing.assert_close(merged, trained, atol=2e-2, rtol=0)
    assert all(value.dtype is torch.float16 for value in load_file(tmp_path / "smol" / "trained.safetensors").values())
    # A finished run trains nothing again.
    again, _ = training.smol.build.model_and_processor(0)
    train.train_tower(Run(tmp_path), again, 0, 2)
    train.train_connector(Run(tmp_path), again, processor.tokenizer, 0, 2)
    for name, value in tower_before.items():
        assert torch.equal(again.model.vision_model.state_dict()[name], value)


def test_the_loss_is_that_of_the_answers_tokens():
    model, processor = training.smol.build.model_and_processor(0)
    batch = chats.picture_chats(processor.tokenizer, np.random.default_rng(0))
    with torch.no_grad():
        found, is_right = language.answer_loss(model, batch)
        logits = model(input_ids=batch.ids, attention_mask=batch.mask, pixel_values=batch.pixels).logits
    losses = [
        cross_entropy(logits[row, position - 1], batch.ids[row, position])
        for row, position in batch.is_target.nonzero().tolist()
    ]
    torch.testing.assert_close(found, torch.stack(losses).mean(), atol=1e-4, rtol=0)
    assert len(is_right) == len(losses)
    answers = processor.tokenizer.decode(batch.ids[0][batch.is_target[0]])
    assert answers.count("<|im_end|>") == 2


def test_plain_text_costs_nothing_until_an_update_changes_it():
    model, processor = training.smol.build.model_and_processor(0)
    updates: Any = train.add_updates(model.model.text_model)
    ids = chats.plain_tokens(processor.tokenizer, np.random.default_rng(0))
    assert ids.shape == (1, chats.N_PLAIN)
    with torch.no_grad():
        assert abs(language.plain_loss(model, updates, ids).item()) < 1e-6
        torch.nn.init.normal_(updates["layers-1-o_proj"].up)
        assert language.plain_loss(model, updates, ids).item() > 1e-3
    assert all(update.is_on for update in updates.values())
